"""The fleet in virtual time: the product's own decision cores on recorded traces."""

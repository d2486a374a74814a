"""Who serves which part of the key space: pure."""

"""Axon, the router: checks the key, prices, holds, picks a replica, relays the stream and settles."""

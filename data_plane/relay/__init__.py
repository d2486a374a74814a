"""The relay: the public data path over HTTP, as few steps per token as Python can take."""

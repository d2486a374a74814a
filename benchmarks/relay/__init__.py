"""bench-relay: what a router costs per request and per token, beside the routers of other houses."""

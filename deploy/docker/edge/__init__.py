"""The door of the compose platform: one fixed address in front of however many routers and control planes run.

Why it exists: Docker gives the containers of a scaled service host ports out of a range, and a container that restarts
takes the *next* free port of that range (measured with Docker 20.10: 18080, after a restart 18081, then 18082), so
clients would lose their address at the first router crash. The edge holds the published ports instead and relays TCP to
the containers behind a service name. It reads nothing of what passes: HTTP and gRPC go through as they are.

Where a connection goes: to the ready container with the fewest open connections. Every second the service name is
resolved and every container asked for /readyz. A connection that is refused or not answered goes to the next container.
While none is ready all are tried, because a router's own error says more than a closed connection.
"""

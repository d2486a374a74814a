"""The platform's rule, asked only once a replica has room: until then the request waits in the router.

What binds late is bound to who is free, and not to who looked as if it would be. The choice is that of `cost`; waiting,
and who is next, is the router's waiting line.
"""

from __future__ import annotations

from data_plane.router.core.policies.cost import Cost


class LateBinding(Cost):
    """The least cost until the first token, among replicas of which at least one has room."""

    name = "late_binding"
    waits_for_room = True

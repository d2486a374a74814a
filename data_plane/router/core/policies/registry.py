"""Every policy by its name and by its number in the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from data_plane.router.core.policies.cost import Cost
from data_plane.router.core.policies.late_binding import LateBinding
from data_plane.router.core.policies.least_cost import LeastCost
from data_plane.router.core.policies.least_requests import LeastRequests
from data_plane.router.core.policies.policy import Policy, Randomness
from data_plane.router.core.policies.prefix_match import PrefixMatch
from data_plane.router.core.policies.round_robin import RoundRobin
from data_plane.router.core.policies.two_choices import TwoChoices
from fairlead.admin.v1 import admin_pb2

DEFAULT_POLICY: Final = "cost"
"""What a model without a wish gets."""

POLICIES: Final[Mapping[str, Callable[[Randomness], Policy]]] = MappingProxyType(
    {
        "cost": lambda _random: Cost(),
        "late_binding": lambda _random: LateBinding(),
        "round_robin": RoundRobin,
        "two_choices": TwoChoices,
        "least_requests": LeastRequests,
        "least_cost": lambda _random: LeastCost(),
        "prefix_match": lambda _random: PrefixMatch(),
    }
)
"""Policies by name. Each router makes one per model, with a random stream of its own."""

PRODUCT: Final = "product"
"""Another name of the platform's default, for scenarios that compare the others with it."""

_BY_NUMBER: Final[Mapping[int, str]] = MappingProxyType(
    {
        admin_pb2.ROUTING_POLICY_COST: "cost",
        admin_pb2.ROUTING_POLICY_LATE_BINDING: "late_binding",
        admin_pb2.ROUTING_POLICY_ROUND_ROBIN: "round_robin",
        admin_pb2.ROUTING_POLICY_TWO_CHOICES: "two_choices",
        admin_pb2.ROUTING_POLICY_LEAST_REQUESTS: "least_requests",
        admin_pb2.ROUTING_POLICY_LEAST_COST: "least_cost",
        admin_pb2.ROUTING_POLICY_PREFIX_MATCH: "prefix_match",
    }
)


def policy_name(number: int) -> str:
    """The name of an `admin.v1.RoutingPolicy`; one that is unset or unknown here is the platform's default."""
    return _BY_NUMBER.get(number, DEFAULT_POLICY)


def make_policy(name: str, random: Randomness) -> Policy:
    """A policy for one router and one model.

    Args:
        name: As in `POLICIES`, or "product" for the default.
        random: Its random numbers.

    Raises:
        KeyError: There is no policy of that name.
    """
    return POLICIES[DEFAULT_POLICY if name == PRODUCT else name](random)

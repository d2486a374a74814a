"""Deals the requests of a trace to tenants, the same way every time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from fairlead.errors import InvalidArgumentError
from fairlead.replay.traces import TraceRequest


def group_of(number: int, request: TraceRequest) -> str:
    """Names what a request belongs to: its client, else the conversation its prefix shows, else itself.

    The first block of a prefix is what a whole service has in common (a system prompt); the second tells conversations
    apart.

    Args:
        number: The request's place in the trace.
        request: The request.
    """
    if request.client:
        return f"client {request.client}"
    if len(request.prefix_blocks) > 1:
        return f"blocks {request.prefix_blocks[0]} {request.prefix_blocks[1]}"
    return f"request {number}"


def deal(requests: Sequence[TraceRequest], weights: Sequence[float]) -> list[int]:
    """Deals requests to tenants in proportion to weights.

    Named clients stay whole: from the busiest down, each goes to the tenant that is furthest behind its share.
    Without clients, conversations (or single requests) are dealt by hash.

    Args:
        requests: The trace.
        weights: One per tenant, above 0.

    Returns:
        The tenant's position for each request.

    Raises:
        InvalidArgumentError: There is no tenant, or a weight is not above 0.
    """
    if not weights or not all(weight > 0 for weight in weights):
        raise InvalidArgumentError("a replay needs at least one target, each with a weight above 0", field="targets")
    groups = [group_of(number, request) for number, request in enumerate(requests)]
    if any(request.client for request in requests):
        places = _deal_clients(Counter(groups), weights)
    else:
        places = {group: _by_hash(group, weights) for group in set(groups)}
    return [places[group] for group in groups]


def _deal_clients(counts: Counter[str], weights: Sequence[float]) -> dict[str, int]:
    loads = [0.0] * len(weights)
    places = {}
    for group, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        place = min(range(len(weights)), key=lambda index: (loads[index] + count) / weights[index])
        places[group] = place
        loads[place] += count
    return places


def _by_hash(group: str, weights: Sequence[float]) -> int:
    draw = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest()) / 2**64 * sum(weights)
    for place, weight in enumerate(weights):
        draw -= weight
        if draw < 0:
            return place
    return len(weights) - 1

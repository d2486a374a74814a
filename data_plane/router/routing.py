"""Finds a replica for a request: its place in the key space, the model's policy, the wait for room, the refusals."""

from __future__ import annotations

import math
from collections.abc import Collection
from random import Random
from typing import Final

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.shard_map import Generation, shard_key
from data_plane.router.admission import Order
from data_plane.router.core.candidate import SECONDS_PER_MINUTE, Health
from data_plane.router.core.deadline import Sent, is_hopeless, soonest_first_token_s
from data_plane.router.core.fleet import Fleet, Member
from data_plane.router.core.holds import BucketKey
from data_plane.router.core.loads import Dispatch
from data_plane.router.core.policies.policy import ROOM_S, Ask, Pick, Policy, has_room
from data_plane.router.core.policies.registry import make_policy, policy_name
from data_plane.router.core.pool import Pool
from data_plane.router.core.waiting_group import Subset
from data_plane.router.exchange import Receipt
from data_plane.router.routing_counts import RoutingCounts
from data_plane.router.tables import Tables
from data_plane.router.waiting_desk import WaitingDesk, Wanted
from fairlead.errors import DeadlineExceededError, Reason
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.prefix import PREFIX_BLOCK_BYTES, TURN_BYTES_MAX, prefix_blocks, prompt_chunks

log = get_logger(__name__)

# Looking a number up on the module and the enum costs more than comparing it.
_SYSTEM: Final = pb.PRIORITY_SYSTEM

_RANKS: Final = {pb.PRIORITY_SYSTEM: 0, pb.PRIORITY_INTERACTIVE: 1, pb.PRIORITY_BATCH: 2}
_NS_PER_MINUTE: Final = 60 * NS_PER_S


class Route:
    """What decides where a request may go; found once per request.

    Args:
        order: The request.
        receipt: Its receipt.
        shard_key: Where it lies in the key space.
        blocks: Names of its prompt's leading blocks; none where no replica of the model keeps prefixes.
    """

    __slots__ = (
        "blocks",
        "order",
        "receipt",
        "shard_key",
    )

    def __init__(self, order: Order, receipt: Receipt, shard_key: int, blocks: tuple[int, ...]) -> None:
        self.order = order
        self.receipt = receipt
        self.shard_key = shard_key
        self.blocks = blocks


class Chosen:
    """A replica, with the request already counted on it.

    Args:
        member: The replica.
        pick: Why this one.
        dispatch: The request there; to be ended once, whatever becomes of it.
        generation: The assignment it was picked by; the zero generation where there was none.
    """

    __slots__ = (
        "dispatch",
        "generation",
        "member",
        "pick",
    )

    def __init__(self, member: Member, pick: Pick, dispatch: Dispatch, generation: Generation) -> None:
        self.member = member
        self.pick = pick
        self.dispatch = dispatch
        self.generation = generation


class NoReplicaError(Exception):
    """Nothing is eligible; for `Attempts`, which knows what was tried before."""


Found = Chosen | Exception
"""A replica, or what is to be said of it instead."""


class Routing:
    """Chooses replicas.

    Args:
        tables: Models and assignments.
        fleet: The replicas.
        desk: Where requests wait for room.
        clock: Monotonic time.
        random: Of policies that draw.
        weighed_max: How many of the best candidates every pick remembers, 0 or more.
    """

    def __init__(
        self,
        *,
        tables: Tables,
        fleet: Fleet,
        desk: WaitingDesk[Found],
        clock: Clock,
        random: Random,
        weighed_max: int,
    ) -> None:
        self._tables = tables
        self._fleet = fleet
        self._desk = desk
        self._now_ns = clock.monotonic_ns
        self._random = random
        self._weighed_max = weighed_max
        self._policies: dict[str, tuple[int, Policy]] = {}  # by model, each with its number in the API
        self._sent = Sent()
        self.counts = RoutingCounts()

    def route(self, order: Order, receipt: Receipt) -> Route:
        """Finds a request's place in the key space."""
        blocks: tuple[int, ...] = ()
        checked = order.checked
        long = checked.prompt_bytes + checked.messages * TURN_BYTES_MAX >= PREFIX_BLOCK_BYTES
        if long and self._fleet.prefixes(order.bucket[1]) is not None:
            blocks = prefix_blocks(prompt_chunks(order.request))
        affinity = receipt.session_id or (f"{blocks[0]:016x}" if blocks else receipt.request_id)
        return Route(order, receipt, shard_key(order.tenant_id, affinity), blocks)

    def at_once(self, route: Route, excluded: Collection[str], *, may_wait: bool) -> Found | None:
        """Chooses a replica and counts the request on it.

        Args:
            route: Of the request.
            excluded: Replicas that must not be chosen.
            may_wait: The request may wait for a replica with room, where the model's policy wants that.

        Returns:
            The replica; NoReplicaError where nothing is eligible; DeadlineExceededError where none can answer before
            the deadline (reason DEADLINE_TOO_SHORT); None where the request has to wait.
        """
        policy = self._policy(route.order.bucket[1])
        if may_wait and policy.waits_for_room and route.order.checked.priority != _SYSTEM:
            wish = _Wish(self, route, excluded)
            return self._desk.at_once(wish.model_id, wish.subset(), wish.take)
        return self._take(route, policy, excluded, needs_room=False) or NoReplicaError()

    async def wait(self, route: Route, excluded: Collection[str]) -> Found:
        """Chooses a replica and counts the request on it as soon as one has room.

        Args:
            route: Of the request.
            excluded: Replicas that were full; free again once they are not.

        Returns:
            As `at_once`.

        Raises:
            QuotaExceededError: Too many wait for room already; reason QUEUE_FULL.
            DeadlineExceededError: None had room in time.
        """
        order, receipt, begin_ns = route.order, route.receipt, self._now_ns()
        wish = _Wish(self, route, excluded)
        policy = self._policy(wish.model_id)
        ask, pool = self._ask(route, excluded, begin_ns), self._pool(route, begin_ns)
        first = policy.pick(ask, pool)
        member = self._fleet.get(first.replica_id) if first is not None else None
        if first is None or member is None:
            return NoReplicaError()
        hopeless = self._hopeless(route, ask, pool, first, (order.deadline_ns - begin_ns) / NS_PER_S)
        if hopeless is not None:
            return hopeless
        wanted: Wanted[Found] = Wanted(
            tenant_id=order.tenant_id,
            rank=_RANKS[order.checked.priority],
            weight=weight(receipt),
            milli_mu=first.uncached_prefill_milli_mu + order.price.cost.decode_milli_mu,
            prefill_ns=first.uncached_prefill_milli_mu * _NS_PER_MINUTE // member.load.capacity_milli_mu_per_minute,
            deadline_ns=order.deadline_ns,
            subset=wish.subset,
            take=wish.take,
            give_back=self._give_back,
            excluded=wish.excluded,
        )
        try:
            return await self._desk.wait(wish.model_id, wanted)
        finally:
            waited_ns = self._now_ns() - begin_ns
            receipt.room_wait_ns += waited_ns
            counts = self.counts.of(wish.model_id)
            counts.waits += 1
            counts.waited_ns += waited_ns

    def take_with_room(self, route: Route, excluded: frozenset[str]) -> Found | None:
        """What a request gets that waits for a replica with room: see `at_once`.

        Args:
            route: Of the request.
            excluded: As for `wait`.
        """
        left_out: Collection[str] = excluded
        if excluded:
            model_id = route.order.bucket[1]
            left_out = excluded & self._fleet.full(model_id, self.subset(route), self._now_ns())
        policy = self._policy(route.order.bucket[1])  # of now: it may have changed meanwhile
        return self._take(route, policy, left_out, needs_room=policy.waits_for_room)

    def subset(self, route: Route) -> Subset:
        """Where a request may go by the assignment of now."""
        return self._tables.subset(route.order.bucket[1], route.shard_key)

    def open_to(self, route: Route, excluded: Collection[str]) -> list[str]:
        """The replicas that a request may be sent to now.

        Args:
            route: Of the request.
            excluded: Replicas that must not be chosen.
        """
        pool = self._pool(route, self._now_ns())
        return [each.replica_id for each in pool.eligible if each.replica_id not in excluded]

    def started(self, chosen: Chosen) -> None:
        """The first token came."""
        chosen.member.load.started(chosen.dispatch, self._now_ns())
        self._sent.remove(chosen.dispatch)
        self.freed(chosen.member)

    def ended(self, chosen: Chosen) -> None:
        """The request left the replica, whatever became of it."""
        chosen.member.load.ended(chosen.dispatch, self._now_ns())
        self._sent.remove(chosen.dispatch)
        self.freed(chosen.member)

    def freed(self, member: Member) -> None:
        """A replica may have got room."""
        if not len(self._desk):
            return
        load = member.load

        def worthwhile() -> bool:
            load.settle()
            return load.health is not Health.READY or has_room(load)

        self._desk.freed(member.record.model_id, member.record.replica_id, worthwhile)

    def free_milli_mu(self, key: BucketKey) -> int | None:
        """What batch may be let in before it would wait here for a replica with room, holding its quota.

        Args:
            key: Whose requests.

        Returns:
            mMU, 0 where it would wait at once; None where the model's policy lets nobody wait.
        """
        tenant_id, model_id = key
        if not self._policy(model_id).waits_for_room:
            return None
        subset = self._tables.subset_of(model_id, tenant_id)
        if self._desk.shared(model_id, subset):
            return 0
        now_ns = self._now_ns()
        pool = self._fleet.candidates(model_id, subset, now_ns).without(self._fleet.full(model_id, subset, now_ns))
        free = sum(each.capacity_milli_mu_per_minute for each in pool.eligible if has_room(each))
        return math.ceil(ROOM_S * free / SECONDS_PER_MINUTE)

    def _take(self, route: Route, policy: Policy, excluded: Collection[str], *, needs_room: bool) -> Found | None:
        """A replica for a request, or what is to be said of it; None where it shall wait for room."""
        order, now_ns = route.order, self._now_ns()
        pool = self._pool(route, now_ns)
        full: list[str] = []
        if needs_room:
            open_ = pool.without(excluded).eligible
            full = [each.replica_id for each in open_ if not has_room(each)]
            if full and len(full) == len(open_):
                return None
        ask = self._ask(route, excluded, now_ns)
        pick = policy.pick(ask._replace(excluded={*excluded, *full}) if full else ask, pool)
        if pick is None:
            return NoReplicaError()
        hopeless = self._hopeless(route, ask, pool, pick, (order.deadline_ns - now_ns) / NS_PER_S)
        if hopeless is not None:
            return hopeless
        member = self._fleet.get(pick.replica_id)
        if member is None:
            return NoReplicaError()
        dispatch = member.load.dispatch(
            pick.uncached_prefill_milli_mu, order.price.cost.decode_milli_mu, now_ns, route.blocks
        )
        self._sent.add(dispatch, order.tenant_id, _RANKS[order.checked.priority])
        self.counts.of(order.bucket[1]).picked(pick, order.price.input_tokens)
        return Chosen(member, pick, dispatch, self._tables.generation(order.bucket[1]))

    def _hopeless(self, route: Route, ask: Ask, pool: Pool, pick: Pick, left_s: float) -> DeadlineExceededError | None:
        if route.receipt.output_tokens or not is_hopeless(pick.expected_first_token_s, left_s):
            return None
        expected_s = soonest_first_token_s(ask, pool, self._sent, _RANKS[route.order.checked.priority])
        if expected_s is None or not is_hopeless(expected_s, left_s):
            return None
        self.counts.of(route.order.bucket[1]).too_late += 1
        return DeadlineExceededError(
            f"the prompt and what you sent before it take {expected_s:.1f} s to the first token at least, and the"
            f" deadline is in {left_s:.1f} s; nothing was charged. Allow more time, or send less at a time",
            reason=Reason.DEADLINE_TOO_SHORT,
            metadata={"expected_s": f"{expected_s:.3f}", "left_s": f"{left_s:.3f}"},
        )

    def _pool(self, route: Route, now_ns: int) -> Pool:
        model_id = route.order.bucket[1]
        return self._fleet.candidates(model_id, self.subset(route), now_ns)

    def _ask(self, route: Route, excluded: Collection[str], now_ns: int) -> Ask:
        order, receipt, blocks = route.order, route.receipt, route.blocks
        price = order.price
        input_tokens, (prefill_milli_mu, decode_milli_mu, _) = price.input_tokens, price.cost
        block_tokens = PREFIX_BLOCK_BYTES * input_tokens / max(1, order.checked.prompt_bytes) if blocks else 0.0
        values = (
            prefill_milli_mu,
            decode_milli_mu,
            input_tokens,
            blocks,
            block_tokens,
            receipt.session_id,
            receipt.request_id,
            order.tenant_id,
            excluded,
            self._weighed_max,
            now_ns,
        )
        # The constructor of a named tuple is a call more.
        return tuple.__new__(Ask, values)

    def _policy(self, model_id: str) -> Policy:
        number = self._tables.routing_policy(model_id)
        kept = self._policies.get(model_id)
        if kept is not None and kept[0] == number:
            return kept[1]
        name = policy_name(number)
        policy = kept[1] if kept is not None and kept[1].name == name else make_policy(name, self._random)
        self._policies[model_id] = number, policy
        return policy

    def _give_back(self, found: Found) -> None:
        if isinstance(found, Chosen):
            self.ended(found)


def weight(receipt: Receipt) -> int:
    """A tenant's weight among those who wait: its quota over all routers, milli-MU per minute, 1 or more."""
    return max(1, receipt.bucket.quota_milli_mu_per_minute if receipt.bucket is not None else 0)


class _Wish:
    """What a request wants that may wait for a replica with room."""

    __slots__ = ("_route", "_routing", "excluded", "model_id")

    def __init__(self, routing: Routing, route: Route, excluded: Collection[str]) -> None:
        self._routing = routing
        self._route = route
        self.model_id = route.order.bucket[1]
        self.excluded = frozenset(excluded)

    def subset(self) -> Subset:
        return self._routing.subset(self._route)

    def take(self) -> Found | None:
        return self._routing.take_with_room(self._route, self.excluded)

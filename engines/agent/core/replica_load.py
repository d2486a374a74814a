"""Everything a replica says of its load, kept together request by request.

One request touches five accounts: what is pending and decoding, how busy the replica was, which keys the load belongs
to, what the prefix cache holds, and how far its router's dispatches have come. They move at the same moments, so that a
report made at any time is one state of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engines.agent.core.dispatches import DispatchesSeen
from engines.agent.core.key_loads import KeyLoad, KeyLoads, key_part
from engines.agent.core.load import Load, LoadAccount, UtilizationWindow, sane_price
from engines.agent.core.prefix_cache import PrefixCache
from model_units.units import MilliModelUnitsPerMinute


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from and where it belongs.

    Attributes:
        router_id: The router process that sent it; empty for the agent's own.
        dispatch_number: Its count of what it sent here, from 1; 0 where it does not count.
        shard_key: Where it lies in the key space; 0 where that was not said.
        prefix_blocks: Names of its prompt's leading blocks, front first.
    """

    router_id: str = ""
    dispatch_number: int = 0
    shard_key: int = 0
    prefix_blocks: tuple[int, ...] = ()


OWN: Final = Origin()
"""Of the agent's own requests."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request is expected to take.

    Attributes:
        tenant_id: Whose; empty for the agent's own.
        prefill_milli_mu: Price of what has to be computed of its prompt, mMU.
        decode_milli_mu: Estimated price of its decoding, mMU.
        input_tokens: Its prompt, estimated, 1 or more.
        output_tokens: The output that the price of decoding stands for, 1 or more.
    """

    tenant_id: str
    prefill_milli_mu: int
    decode_milli_mu: int
    input_tokens: int
    output_tokens: int


@dataclass(slots=True)
class _Present:
    blocks: tuple[int, ...]
    tokens_per_block: int
    part: int | None  # of the key space; None where it was not said
    computed: bool = False


class ReplicaLoad:
    """The accounts of one replica. Times are monotonic seconds.

    Args:
        capacity: What it serves, mMU per minute, above 0.

    Attributes:
        cache: What the engine's prefix cache holds.
        dispatches: How far each router's dispatches have come.
        kv_capacity_tokens: Size of the engine's KV cache; 0 before it has started or where it does not tell.
    """

    def __init__(self, capacity: MilliModelUnitsPerMinute) -> None:
        self.cache = PrefixCache()
        self.dispatches = DispatchesSeen()
        self.kv_capacity_tokens = 0
        self._account = LoadAccount()
        self._utilization = UtilizationWindow(capacity)
        self._keys = KeyLoads()
        self._present: dict[str, _Present] = {}

    def engine_started(self, kv_capacity_tokens: int, *, prefix_cache: bool) -> None:
        """The engine has started, with nothing cached.

        Args:
            kv_capacity_tokens: Size of its KV cache; 0 where it does not tell.
            prefix_cache: Whether it keeps the prefixes of prompts it has computed.
        """
        self.kv_capacity_tokens = max(0, kv_capacity_tokens)
        self.cache.restart(self.kv_capacity_tokens if prefix_cache else 0)

    def queue(self, request_id: str, demand: Demand, origin: Origin, now_s: float) -> None:
        """A request was taken and waits.

        Args:
            request_id: Unique among the requests here.
            demand: What it is expected to take.
            origin: Where it belongs.
            now_s: Now.

        Raises:
            ValueError: The id is here already.
        """
        prefill, decode = sane_price(demand.prefill_milli_mu), sane_price(demand.decode_milli_mu)
        self._account.queue(
            request_id, prefill_milli_mu=prefill, decode_milli_mu=decode, output_tokens=demand.output_tokens
        )
        blocks = origin.prefix_blocks
        tokens_per_block = demand.input_tokens // len(blocks) if blocks else 0
        part = key_part(origin.shard_key) if origin.shard_key else None
        if part is not None:
            self._keys.arrive(part, demand.tenant_id, prefill + decode, now_s)
        self._present[request_id] = _Present(blocks, tokens_per_block, part)

    def start(self, request_id: str) -> None:
        """A request went into the engine."""
        self._account.start(request_id)
        self.cache.touch(self._present[request_id].blocks)

    def produce(self, request_id: str, tokens: int, now_s: float) -> float:
        """A request in the engine produced tokens; with the first one its prompt is computed.

        Args:
            request_id: Which.
            tokens: New tokens, 0 or more.
            now_s: When they came.

        Returns:
            The work this stands for, mMU.
        """
        served = self._account.produce(request_id, tokens)
        self._utilization.add(served, now_s)
        present = self._present[request_id]
        if tokens > 0 and not present.computed:
            present.computed = True
            self.cache.fill(present.blocks, present.tokens_per_block, present.part)
        return served

    def end(self, request_id: str) -> int:
        """A request ended, however and wherever it was. Ending it again does nothing.

        Returns:
            The decode work it did, mMU.
        """
        present = self._present.pop(request_id, None)
        if present is None:
            return 0
        if present.part is not None:
            self._keys.end(present.part)
        return self._account.end(request_id)

    def load(self) -> Load:
        """What waits and runs now."""
        return self._account.load()

    def utilization(self, now_s: float) -> float:
        """Share of the capacity used in the last ten seconds."""
        return self._utilization.utilization(now_s)

    def key_loads(self, now_s: float) -> tuple[KeyLoad, ...]:
        """Load by key, the heaviest first, at most `key_loads.REPORTED_MAX`."""
        return self._keys.loads(now_s, self.cache.tokens_by_part)

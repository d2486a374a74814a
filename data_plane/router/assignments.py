"""The router's book of assignments: the newest one of every model, wherever it came from, kept when others lose it.

An assignment comes out of the store, from a replica agent or from another router, and the newest generation wins
whatever its source. Nothing ever empties the book: a store that lost an assignment, or a sharder that is gone, leaves
the router with the last one there was. A damaged assignment is refused, said once, and the last good one stays.

With a folder for snapshots the book outlives the process: a router that starts while everything above it is dead routes
as it did before.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from common.clock import Clock
from common.logs import get_logger
from common.shard_map import Generation, ShardMap
from fairlead.errors import InvalidArgumentError
from fairlead.sharding.v1 import sharding_pb2

MODELS_MAX: Final = 4_096
"""Most models with an assignment; what more is handed over is not taken. Far above what one platform serves."""

ANSWER_BYTES_MAX: Final = 3_000_000
"""What one answer hands over at most: a gRPC message takes 4 MiB. The caller asks again for the rest."""

_DIGEST_BYTES: Final = 32

_NO_GENERATION: Final = Generation()

log = get_logger(__name__)


class Assignments:
    """The newest assignment of every model.

    Args:
        clock: For ages.
        snapshot_path: Where the book is kept, or None for nowhere.
    """

    def __init__(self, clock: Clock, *, snapshot_path: Path | None = None) -> None:
        self._clock = clock
        self._snapshot_path = snapshot_path
        self._maps: dict[str, ShardMap] = {}
        self._messages: dict[str, sharding_pb2.Assignment] = {}
        self._taken_ns: dict[str, int] = {}
        self._damaged: dict[str, Generation] = {}
        self._callbacks: list[Callable[[str], None]] = []
        self._dirty = asyncio.Event()
        self._load()

    def get(self, model_id: str) -> ShardMap | None:
        """The assignment in force for a model, or None where there never was one."""
        return self._maps.get(model_id)

    def generation(self, model_id: str) -> Generation:
        """Its generation; the zero generation where there is none."""
        held = self._maps.get(model_id)
        return held.generation if held is not None else _NO_GENERATION

    def held_for_ns(self, model_id: str) -> int:
        """How long this process has had it, nanoseconds; 0 where there is none."""
        taken_ns = self._taken_ns.get(model_id)
        return 0 if taken_ns is None else self._clock.monotonic_ns() - taken_ns

    def ages_s(self) -> dict[str, float]:
        """How long ago each model's assignment was computed, by the wall clock: for people."""
        now_s = self._clock.wall_ns() / 1e9
        return {
            model_id: max(0.0, now_s - message.compute_time.ToNanoseconds() / 1e9)
            for model_id, message in self._messages.items()
        }

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Calls `callback(model_id)` whenever a newer assignment was taken; it must not block or raise."""
        self._callbacks.append(callback)

    def take(self, assignment: sharding_pb2.Assignment, source: str) -> bool:
        """Takes an assignment that is newer than the one in force.

        Args:
            assignment: As it came; not changed afterwards.
            source: From whom, for the log.

        Returns:
            Whether it is in force now.
        """
        model_id, generation = assignment.model_id, Generation.of(assignment.generation)
        if generation <= self.generation(model_id):
            return False
        if not generation.sound:
            return False
        if not model_id or (model_id not in self._maps and len(self._maps) >= MODELS_MAX):
            return False
        try:
            shard_map = ShardMap(assignment)
        except InvalidArgumentError as error:
            if self._damaged.get(model_id) != generation and len(self._damaged) < MODELS_MAX:
                self._damaged[model_id] = generation
                log.error(
                    "assignment refused", model=model_id, source=source, error=error.message, kept=self._kept(model_id)
                )
            return False
        self._maps[model_id], self._messages[model_id] = shard_map, assignment
        self._taken_ns[model_id] = self._clock.monotonic_ns()
        log.info("assignment in force", model=model_id, generation=generation.number, source=source)
        self._dirty.set()
        for callback in self._callbacks:
            callback(model_id)
        return True

    def stored(self, model_id: str, assignment: sharding_pb2.Assignment | None) -> None:
        """What the store says of a model's assignment; None, that it has none, changes nothing."""
        if assignment is None:
            if model_id in self._maps:
                log.warning("the store has no assignment any more", model=model_id, kept=self._kept(model_id))
        elif assignment.model_id == model_id:
            self.take(assignment, "store")

    def held(self) -> dict[str, sharding_pb2.Generation]:
        """Generations by model, as messages."""
        return {model_id: shard_map.generation.message() for model_id, shard_map in self._maps.items()}

    def message(self, model_id: str) -> sharding_pb2.Assignment | None:
        """The assignment in force as a message, to hand it over; None where there is none."""
        return self._messages.get(model_id)

    def exchange(self, request: sharding_pb2.ExchangeAssignmentsRequest) -> sharding_pb2.ExchangeAssignmentsResponse:
        """Meets another holder: see AssignmentService of sharding.proto."""
        for assignment in request.assignments:
            self.take(assignment, "handed over")
        answer = sharding_pb2.ExchangeAssignmentsResponse()
        size = 0
        for model_id, shard_map in sorted(self._maps.items()):
            theirs = Generation.of(request.held[model_id]) if model_id in request.held else Generation()
            message = self._messages[model_id]
            if theirs < shard_map.generation and size + message.ByteSize() <= ANSWER_BYTES_MAX:
                size += message.ByteSize()
                answer.assignments.append(message)
        answer.wanted_model_ids.extend(
            model_id
            for model_id, generation in sorted(request.held.items())
            if self.generation(model_id) < Generation.of(generation)
        )
        return answer

    async def run(self) -> None:
        """Keeps the snapshot current until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._snapshot_path is None:
                continue
            body = sharding_pb2.ListAssignmentsResponse(assignments=self._messages.values()).SerializeToString()
            try:
                await asyncio.to_thread(_replace, self._snapshot_path, hashlib.sha256(body).digest() + body)
            except OSError as error:
                log.warning("assignments not kept on disk", path=self._snapshot_path, error=str(error))

    def _kept(self, model_id: str) -> int:
        return self.generation(model_id).number

    def _load(self) -> None:
        if self._snapshot_path is None or not self._snapshot_path.exists():
            return
        try:
            content = self._snapshot_path.read_bytes()
            digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("checksum does not match")
            kept = sharding_pb2.ListAssignmentsResponse.FromString(body)
        except (OSError, ValueError, DecodeError) as error:
            log.warning("assignments on disk ignored", path=self._snapshot_path, error=str(error))
            return
        for assignment in kept.assignments:
            self.take(assignment, "snapshot")


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()

"""The replicas' records in the store, and the watches on them: what was written is seen a moment later."""

from __future__ import annotations

from collections.abc import Callable

from fairlead.engine.v1 import engine_pb2
from simulation.kernel import Loop

Watcher = Callable[[str, engine_pb2.Replica | None], None]


class Registry:
    """Replica records.

    Args:
        loop: Virtual time.
        delay_ns: From a write to its watchers.

    Attributes:
        records: As watchers see them, by replica id.
    """

    def __init__(self, loop: Loop, delay_ns: int) -> None:
        self.records: dict[str, engine_pb2.Replica] = {}
        self._loop = loop
        self._delay_ns = delay_ns
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """Calls `watcher` with every record that is written (None: that vanished), a watch's delay later."""
        self._watchers.append(watcher)

    def put(self, record: engine_pb2.Replica) -> None:
        """Writes a record."""
        written = engine_pb2.Replica()
        written.CopyFrom(record)
        self._loop.at(self._loop.now_ns + self._delay_ns, self._tell, (record.replica_id, written))

    def delete(self, replica_id: str) -> None:
        """A record vanishes."""
        self._loop.at(self._loop.now_ns + self._delay_ns, self._tell, (replica_id, None))

    def _tell(self, change: tuple[str, engine_pb2.Replica | None]) -> None:
        replica_id, record = change
        if record is None:
            self.records.pop(replica_id, None)
        else:
            self.records[replica_id] = record
        for watcher in self._watchers:
            watcher(replica_id, record)

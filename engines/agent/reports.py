"""Load reports: numbered snapshots of what the replica is busy with."""

from __future__ import annotations

from common.clock import Clock
from engines.agent.dispatcher import Dispatcher
from engines.agent.record import ReplicaRecord
from engines.engine import Engine
from fairlead.engine.v1 import engine_pb2


class LoadReporter:
    """Makes load reports.

    Args:
        record: Who reports, and its state.
        dispatcher: The queue and what is in flight.
        engine: Progress and KV use.
        clock: The replica's clock.
    """

    def __init__(self, record: ReplicaRecord, dispatcher: Dispatcher, engine: Engine, clock: Clock) -> None:
        self._record = record
        self._dispatcher = dispatcher
        self._engine = engine
        self._clock = clock
        self._sequence = 0

    def report(self) -> engine_pb2.LoadReport:
        """A snapshot with the next number."""
        self._sequence += 1
        load = self._dispatcher.load()
        report = engine_pb2.LoadReport(
            replica_id=self._record.replica_id,
            sequence=self._sequence,
            queued_requests=load.queued_requests,
            pending_prefill_milli_mu=load.pending_prefill_milli_mu,
            running_requests=load.running_requests,
            decode_milli_mu=load.decode_milli_mu,
            kv_used_tokens=self._engine.kv_used_tokens,
            progress_tokens=self._engine.progress_tokens,
            state=self._record.state,
            utilization=self._dispatcher.utilization(),
        )
        report.report_time.FromNanoseconds(self._clock.wall_ns())
        return report

"""Load reports: numbered snapshots of what the replica is busy with, each for the router that it goes to."""

from __future__ import annotations

from common.clock import NS_PER_S, Clock
from engines.agent.assignments import AssignmentHolder
from engines.agent.core.key_loads import KeyLoad
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
        assignments: The assignment held.
        clock: The replica's clock.
    """

    def __init__(
        self,
        record: ReplicaRecord,
        dispatcher: Dispatcher,
        engine: Engine,
        assignments: AssignmentHolder,
        clock: Clock,
    ) -> None:
        self._record = record
        self._dispatcher = dispatcher
        self._engine = engine
        self._assignments = assignments
        self._clock = clock
        self._sequence = 0

    def report(self, router_id: str) -> engine_pb2.LoadReport:
        """A snapshot with the next number.

        Args:
            router_id: Who gets it.
        """
        self._sequence += 1
        load, accounts = self._dispatcher.load(), self._dispatcher.accounts
        report = engine_pb2.LoadReport(
            replica_id=self._record.replica_id,
            sequence=self._sequence,
            queued_requests=load.queued_requests,
            pending_prefill_milli_mu=load.pending_prefill_milli_mu,
            running_requests=load.running_requests,
            decode_milli_mu=load.decode_milli_mu,
            queued_decode_milli_mu=load.queued_decode_milli_mu,
            kv_used_tokens=self._engine.kv_used_tokens,
            kv_capacity_tokens=accounts.kv_capacity_tokens,
            cached_tokens=accounts.cache.tokens,
            progress_tokens=self._engine.progress_tokens,
            state=self._record.state,
            utilization=self._dispatcher.utilization(),
            dispatches_seen=accounts.dispatches.seen(router_id),
        )
        generation = self._assignments.generation
        if generation is not None:
            report.assignment.CopyFrom(generation.message())
        report.report_time.FromNanoseconds(self._clock.wall_ns())
        return report

    def stream(self, request: engine_pb2.WatchLoadRequest) -> ReportStream:
        """The reports of one load stream, from its beginning."""
        return ReportStream(self, self._dispatcher, self._clock, request)


class ReportStream:
    """The reports of one load stream: each says what changed in the prefix cache since the one before.

    Args:
        reporter: Makes the reports.
        dispatcher: Has the prefix cache and the load by key.
        clock: The replica's clock.
        request: Who asked, and for what.
    """

    def __init__(
        self, reporter: LoadReporter, dispatcher: Dispatcher, clock: Clock, request: engine_pb2.WatchLoadRequest
    ) -> None:
        self._reporter = reporter
        self._accounts = dispatcher.accounts
        self._clock = clock
        self._request = request
        self._position: int | None = None

    def next(self) -> engine_pb2.LoadReport:
        """The next report."""
        report = self._reporter.report(self._request.router_id)
        if self._request.with_cache:
            changes = self._accounts.cache.changes(self._position)
            self._position = changes.position
            if changes:
                report.cache.whole = changes.whole
                report.cache.added.extend(changes.added)
                report.cache.dropped.extend(changes.dropped)
        if self._request.with_keys:
            now_s = self._clock.monotonic_ns() / NS_PER_S
            report.key_loads.extend(_message(each) for each in self._accounts.key_loads(now_s))
        return report


def _message(load: KeyLoad) -> engine_pb2.KeyLoad:
    return engine_pb2.KeyLoad(
        first_key=load.first_key,
        rate_milli_mu_per_minute=load.rate_milli_mu_per_minute,
        warm_tokens=load.warm_tokens,
        in_flight=load.in_flight,
        tenant_id=load.tenant_id,
    )

"""Puts a scenario together and runs it: the only place of a simulation that constructs things."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from capacity.core.allocate import Model, Reservation, utilization_ppm
from common.shard_map import ShardMap
from data_plane.router.core.accounts import Outcome
from engines.simulated.hardware import hardware
from engines.simulated.work import SchedulerLimits
from fairlead.errors import InvalidArgumentError, NotFoundError
from model_units.cost import CostProfile
from model_units.profiles import built_in_profiles
from model_units.units import REPLICA_CAPACITY, from_model_units
from model_units.units import MilliModelUnitsPerMinute as Rate
from simulation.arrivals import Arrival, Workloads, traffic
from simulation.books import Incident, TenantBook
from simulation.flight import Flight, Tenant
from simulation.kernel import NS_PER_S, Loop, mix, stream
from simulation.placement import Sharded, Sharder
from simulation.quota import Allocator, RateLimiter, admit_all
from simulation.registry import Registry
from simulation.replica import Replica
from simulation.replica_terms import ReplicaTerms
from simulation.result import Result
from simulation.router import Router
from simulation.scaling import Autoscaler
from simulation.scenario import FailureSpec, ModelSpec, Scenario, TenantSpec
from simulation.seats import Seats
from simulation.surroundings import Surroundings

PROLOGUE_S: Final = 5.0
"""Before the first request, so that placements, quotas and leases are there; results count from its end."""

# Time series have about this many points, and none closer together than a second.
_BUCKETS: Final = 240
# What a client waits at least before it repeats a refused request, and how much longer at random.
_RETRY_S: Final = 1.0
_RETRY_SPREAD: Final = 0.5


class Simulation:
    """One run of one scenario.

    Args:
        scenario: What to run.
        workloads: Where recorded workloads come from; those that ship with Fairlead where left out.

    Raises:
        InvalidArgumentError: The scenario names hardware, a profile or a workload that is not there.
    """

    def __init__(self, scenario: Scenario, workloads: Workloads | None = None) -> None:
        settings = scenario.settings
        self.scenario = scenario
        self.loop = Loop()
        self._start_ns = round(PROLOGUE_S * NS_PER_S)
        self._bucket_ns = max(NS_PER_S, round(settings.duration_s * NS_PER_S / _BUCKETS))
        self._numbers = itertools.count(1)
        self._retries_pending = 0
        self._incidents: list[Incident] = []
        self._replicas: dict[str, Replica] = {}
        self._newest: dict[str, ShardMap] = {}
        self._profiles = {spec.id: _profile(spec) for spec in scenario.models}
        delay_ns = round(settings.control_delay_s * NS_PER_S)
        registry = Registry(self.loop, delay_ns)
        self.routers = self._make_routers()
        for router in self.routers:
            registry.watch(router.on_record)
        reservations = [_reservation(spec) for spec in scenario.tenants]
        self.allocator = Allocator(self.loop, [_model(spec) for spec in scenario.models], reservations)
        registry.watch(self.allocator.on_record)
        random = stream(settings.seed, "limiter")
        self.limiter = None
        if settings.quota:
            self.limiter = RateLimiter(self.loop, self.routers, self.allocator, delay_ns, random)
        else:
            admit_all(self.routers, reservations)
        reserved: dict[str, dict[str, Rate]] = {spec.id: {} for spec in scenario.models}
        for reservation in reservations:
            reserved[reservation.model_id][reservation.tenant_id] = reservation.reserved
        sharded = {spec.id: Sharded(reserved[spec.id], self._profiles[spec.id]) for spec in scenario.models}
        self.sharder = Sharder(
            self.loop, registry, sharded, self._replicas, self.routers, delay_ns, settings.sharder, self._newest
        )
        self.seats = {spec.id: self._make_seats(spec, registry) for spec in scenario.models}
        if settings.autoscaler:
            for seats in self.seats.values():
                Autoscaler(self.loop, seats, registry, self.allocator, settings.scale_window_s)
        for failure in scenario.failures:
            self._plan_failure(failure)
        self.tenants = [Tenant(spec, TenantBook()) for spec in scenario.tenants]
        self._notes: dict[str, None] = {}
        self._plan_traffic(workloads or Workloads(None))
        self.loop.at(self._start_ns, self._sample)

    @property
    def requests(self) -> int:
        """Requests received so far."""
        return sum(tenant.book.received for tenant in self.tenants)

    def run(self, progress: Callable[[float], None] = lambda _simulated_s: None) -> Result:
        """Runs it to its end: traffic for `duration_s`, then until every request has ended.

        Args:
            progress: Told every simulated second how far it is.

        Returns:
            The results, their accounts checked.

        Raises:
            RuntimeError: The accounts do not add up: a defect.
        """
        self.run_to(self.scenario.settings.duration_s, progress)
        while self._retries_pending or any(router.open_requests for router in self.routers):
            self.loop.run(self.loop.now_ns + NS_PER_S)
            progress((self.loop.now_ns - self._start_ns) / NS_PER_S)
        result = self._result()
        result.check()
        return result

    def run_to(self, traffic_s: float, progress: Callable[[float], None] = lambda _simulated_s: None) -> None:
        """Runs up to a moment, for who wants to look in between.

        Args:
            traffic_s: Seconds after the first second of traffic.
            progress: As for `run`.
        """
        end_ns = self._start_ns + round(traffic_s * NS_PER_S)
        while self.loop.now_ns < end_ns:
            self.loop.run(min(end_ns, self.loop.now_ns + NS_PER_S))
            progress((self.loop.now_ns - self._start_ns) / NS_PER_S)

    # --- construction

    def _make_routers(self) -> list[Router]:
        settings = self.scenario.settings
        surroundings = Surroundings(self.loop, self._profiles, self._replicas, self._on_end, self._bucket, self._newest)
        routers = []
        for number in range(1, settings.routers + 1):
            draws = stream(settings.seed, "policy", number), stream(settings.seed, "router", number)
            routers.append(Router(f"router-{number}", surroundings, settings.policy, *draws))
        return routers

    def _make_seats(self, spec: ModelSpec, registry: Registry) -> Seats:
        settings = self.scenario.settings
        terms = ReplicaTerms(
            model_id=spec.id,
            hardware=hardware(spec.hardware),
            limits=SchedulerLimits(
                sequences_max=min(spec.sequences_max, spec.step_tokens_max), step_tokens_max=spec.step_tokens_max
            ),
            queued_max=spec.queued_max,
            report_interval_ns=round(settings.report_interval_s * NS_PER_S),
            report_delay_ns=round(settings.report_delay_s * NS_PER_S),
            answers_report=settings.answers_report,
        )
        speeds = self.scenario.speeds(spec.id)
        return Seats(self.loop, spec, terms, speeds, registry, self._replicas, settings.seed, self._incidents.append)

    def _plan_failure(self, failure: FailureSpec) -> None:
        seats = self.seats[failure.model]
        self.loop.at(self._start_ns + round(failure.at_s * NS_PER_S), seats.fail, failure)

    def _plan_traffic(self, workloads: Workloads) -> None:
        speeds = {spec.id: sum(self.scenario.speeds(spec.id)) for spec in self.scenario.models}
        duration_s = self.scenario.settings.duration_s
        for tenant in self.tenants:
            spec = tenant.spec
            random = stream(self.scenario.settings.seed, "tenant", spec.id)
            capacity = round((speeds[spec.model] or 1.0) * REPLICA_CAPACITY)
            note = functools.partial(self._note, spec.workload)
            arrivals = traffic(spec, workloads, random, self._profiles[spec.model], capacity, duration_s, note)
            self._next((tenant, arrivals))

    def _note(self, workload: str, sentences: Iterable[str]) -> None:
        self._notes.update(dict.fromkeys(f"{workload}: {sentence}" for sentence in sentences))

    # --- traffic

    def _next(self, source: tuple[Tenant, Iterator[Arrival]]) -> None:
        """Plans a tenant's next request, as long as there is traffic."""
        arrival = next(source[1], None)
        if arrival is not None and arrival.at_s < self.scenario.settings.duration_s:
            at_ns = self._start_ns + round(arrival.at_s * NS_PER_S)
            self.loop.at(at_ns, self._arrive, (source, arrival))

    def _arrive(self, coming: tuple[tuple[Tenant, Iterator[Arrival]], Arrival]) -> None:
        source, arrival = coming
        tenant = source[0]
        self._receive(self._flight(tenant, arrival))
        self._next(source)

    def _flight(self, tenant: Tenant, arrival: Arrival) -> Flight:
        session = ""
        if tenant.spec.session == "client":
            session = f"{tenant.id}/{arrival.client}"
        elif tenant.spec.session == "prefix" and arrival.prefix:
            session = f"{tenant.id}/{arrival.prefix[0]:x}"
        return Flight(
            next(self._numbers),
            tenant,
            arrival.input_tokens,
            arrival.output_tokens,
            arrival.prefix,
            session,
            conversation=arrival.conversation,
        )

    def _receive(self, flight: Flight) -> None:
        self.routers[mix(flight.number) % len(self.routers)].receive(flight)

    def _on_end(self, flight: Flight, outcome: Outcome, retry_after_s: float | None) -> None:
        """A request has ended: a refused one may come again, as a request of its own, and a session goes on."""
        tenant = flight.tenant
        if outcome is not Outcome.REFUSED or retry_after_s is None or flight.tries >= tenant.spec.retries_max:
            self._go_on(flight)
            return
        wait_s = max(_RETRY_S, retry_after_s) * (1.0 + _RETRY_SPREAD * (mix(flight.number) / 2.0**64))
        again = Flight(
            next(self._numbers),
            tenant,
            flight.input_tokens,
            flight.output_tokens,
            flight.prefix,
            flight.session_id,
            flight.tries + 1,
            flight.conversation,
        )
        tenant.book.repeated += 1
        self._retries_pending += 1
        self.loop.after(wait_s, self._repeat, again)

    def _go_on(self, flight: Flight) -> None:
        """The next turn of a session comes when the answer has been read, whatever it was."""
        turn = flight.conversation.next_turn() if flight.conversation is not None else None
        if turn is None:
            return
        at_ns = self.loop.now_ns + round(turn.think_s * NS_PER_S)
        duration_s = self.scenario.settings.duration_s
        end_s = min(flight.tenant.spec.end_s or duration_s, duration_s)
        if at_ns < self._start_ns + round(end_s * NS_PER_S):
            again = Flight(
                next(self._numbers),
                flight.tenant,
                turn.input_tokens,
                turn.output_tokens,
                turn.prefix,
                flight.session_id,
                conversation=flight.conversation,
            )
            self.loop.at(at_ns, self._receive, again)

    def _repeat(self, flight: Flight) -> None:
        self._retries_pending -= 1
        self._receive(flight)

    # --- what is kept of it

    def _bucket(self) -> int:
        return (self.loop.now_ns - self._start_ns) // self._bucket_ns

    def _sample(self, _: object) -> None:
        bucket = self._bucket()
        for seats in self.seats.values():
            for seat in seats.seats.values():
                seat.replica.sample(bucket)
        self.loop.at(self.loop.now_ns + self._bucket_ns, self._sample)

    def _result(self) -> Result:
        tracks = []
        for seats in self.seats.values():
            for replica in seats.replicas:
                replica.track.lived_s = replica.lived_s()
                tracks.append(replica.track)
        incidents = [
            *self._incidents,
            *(Incident(each.at_s, "move", f"{each.model_id}: {each.reason}") for each in self.sharder.rearrangements),
        ]
        return Result(
            scenario=self.scenario,
            start_s=PROLOGUE_S,
            end_s=self.loop.now_ns / NS_PER_S,
            bucket_s=self._bucket_ns / NS_PER_S,
            books={tenant.id: tenant.book for tenant in self.tenants},
            tracks=tuple(tracks),
            incidents=tuple(sorted(incidents, key=lambda incident: (incident.at_s, incident.kind, incident.text))),
            events=self.loop.events,
            settled_by_holds_milli_mu=sum(router.holds.settled_milli_mu for router in self.routers),
            open_holds=sum(router.holds.open_holds for router in self.routers),
            left_in_flight=sum(replica.in_flight for replica in self._replicas.values()),
            notes=tuple(self._notes),
            rearrangements=tuple(self.sharder.rearrangements),
        )


def _profile(spec: ModelSpec) -> CostProfile:
    hardware(spec.hardware)  # the better message where there is neither
    try:
        profile = built_in_profiles().resolve(spec.profile, spec.hardware)
    except NotFoundError as error:
        raise InvalidArgumentError(f"model {spec.id!r}: {error.message}", field="profile") from None
    if profile.hardware != spec.hardware:
        raise InvalidArgumentError(
            f"profile {profile.profile_id!r} was measured on {profile.hardware!r}; model {spec.id!r} runs on "
            f"{spec.hardware!r}: name one of that hardware, or leave profile out",
            field="profile",
        )
    return profile


def _model(spec: ModelSpec) -> Model:
    return Model(spec.id, utilization_ppm(spec.target_utilization))


def _reservation(spec: TenantSpec) -> Reservation:
    return Reservation(
        tenant_id=spec.id,
        model_id=spec.model,
        reserved=Rate(from_model_units(spec.reservation_mu_per_minute)),
        ceiling=Rate(from_model_units(spec.burst_mu_per_minute)),
        tier=spec.tier,
        weight=spec.weight,
    )

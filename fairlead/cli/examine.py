"""The checks of `fairlead doctor`, in the order in which one depends on another."""

from __future__ import annotations

import enum
import ipaddress
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import grpc

from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.cli.connection import AdminConnection
from fairlead.cli.failures import hint_of
from fairlead.cli.local_platform import process_alive
from fairlead.cli.output import mu
from fairlead.cli.settings import Settings, resolve
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, UnauthenticatedError
from fairlead.quota.v1 import quota_pb2
from fairlead.sdk.client import Client
from fairlead.sdk.retries import RetryPolicy
from fairlead.version import __version__

LED_SERVICES = ("control-plane", "ratelimiter", "capacity")
AUTOSCALER = "autoscaler"
"""Services that need a leader."""
CLOCK_SKEW_MAX_S = 5.0
"""Clocks further apart than this make timestamps and TLS certificates misleading; leases need no common clock."""
TIMEOUT_S = 5.0
"""Patience with each address, seconds."""


class Verdict(enum.StrEnum):
    """How a check came out."""

    GOOD = "good"
    """As it should be."""
    DOUBTFUL = "doubtful"
    """Works, but look at it."""
    WRONG = "wrong"
    """Does not work."""
    SKIPPED = "skipped"
    """Could not be checked because of an earlier finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check."""

    check: str
    """What was checked: a stable word."""
    verdict: Verdict
    """How it came out."""
    detail: str
    """What was found."""
    remedy: str = ""
    """What to do; empty where nothing is to be done."""


def examine(given: Mapping[str, str], tenant: str | None = None) -> Iterator[Finding]:
    """Runs all checks.

    Args:
        given: Options of the command line.
        tenant: Check this tenant's key of the local platform; None for the key that is set.

    Yields:
        Findings, each check exactly once.
    """
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("versions", Verdict.GOOD, f"fairlead {__version__}, grpcio {grpc.__version__}, Python {python}")
    try:
        settings = resolve(given)
    except FairleadError as error:
        yield Finding(
            "configuration", Verdict.WRONG, error.message, "correct it; `fairlead --help` names every setting"
        )
        return
    yield _configuration(settings)
    if settings.platform is not None:
        yield _processes(settings)
    yield _encryption(settings)
    yield from _routers(settings, tenant)
    yield from _control_plane(settings)


def _configuration(settings: Settings) -> Finding:
    if not settings.sources:
        return Finding(
            "configuration",
            Verdict.DOUBTFUL,
            f"nothing is configured: using {', '.join(settings.addresses)} and {settings.admin_address}",
            "start a local platform with `make run`, or set FAIRLEAD_ADDRESS and FAIRLEAD_ADMIN_ADDRESS",
        )
    where = "; ".join(f"{field} from {source}" for field, source in settings.sources.items())
    return Finding("configuration", Verdict.GOOD, where)


def _processes(settings: Settings) -> Finding:
    platform = settings.platform
    assert platform is not None
    dead = sorted(name for name, pid in platform.processes.items() if not process_alive(pid))
    if not dead:
        return Finding("processes", Verdict.GOOD, f"all {len(platform.processes)} processes of the local platform run")
    if not platform.running():
        return Finding(
            "processes",
            Verdict.WRONG,
            f"{platform.path} is left over from a platform that no longer runs",
            "start it again with `make run`, or delete the file",
        )
    return Finding("processes", Verdict.WRONG, f"not running: {', '.join(dead)}", "look into its log below build/run")


def _encryption(settings: Settings) -> Finding:
    remote = [address for address in (*settings.addresses, settings.admin_address) if not _is_local(address)]
    if settings.tls is None and remote:
        return Finding(
            "encryption",
            Verdict.DOUBTFUL,
            f"keys travel in plain text to {', '.join(remote)}",
            "use --tls where the network is not your own",
        )
    return Finding("encryption", Verdict.GOOD, "TLS" if settings.tls else "plain text on this machine")


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _routers(settings: Settings, tenant: str | None) -> Iterator[Finding]:
    try:
        key: str | None = settings.api_key(tenant)
        missing = None
    except FairleadError as error:
        key, missing = None, error
    reached = refused = False
    for address in settings.addresses:
        try:
            # Any key tells whether the router answers; a made-up one is refused by a router that is fine.
            with Client(
                address,
                api_key=key or "fl-none-none",
                tls=settings.tls or False,
                retries=RetryPolicy(attempts_max=1),
                deadline_s=TIMEOUT_S,
            ) as client:
                models = client.list_models()
        except UnauthenticatedError as error:
            reached = refused = True
            yield Finding("router", Verdict.GOOD, f"{address} answers")
            refusal = error
        except FairleadError as error:
            yield Finding("router", Verdict.WRONG, error.message, hint_of(error) or "check --address")
        else:
            reached = True
            names = ", ".join(model.id for model in models)
            yield Finding("router", Verdict.GOOD, f"{address} answers")
    if missing is not None:
        yield Finding("key", Verdict.DOUBTFUL, "no API key is set", missing.message)
    elif not reached:
        yield Finding("key", Verdict.SKIPPED, "no router answers")
    elif refused:
        yield Finding("key", Verdict.WRONG, refusal.message, "set FAIRLEAD_API_KEY to a live key: fairlead keys list")
    elif not names:
        yield Finding("key", Verdict.WRONG, "the key is good, but its tenant may use no model", "fairlead quota set")
    else:
        yield Finding("key", Verdict.GOOD, f"may use {names}")


def _control_plane(settings: Settings) -> Iterator[Finding]:
    try:
        connection = AdminConnection(settings.admin_address, settings.admin_token(), settings.tls, TIMEOUT_S)
    except FairleadError as error:
        yield Finding(
            "control-plane", Verdict.SKIPPED, "no admin token, so the platform cannot be looked into", error.message
        )
        return
    with connection:
        try:
            services = connection.call(connection.admin.ListServices, admin_pb2.ListServicesRequest()).services
            replicas = connection.call(connection.admin.ListReplicas, admin_pb2.ListReplicasRequest()).replicas
            models = connection.models()
            reservations = connection.call(
                connection.admin.ListReservations, admin_pb2.ListReservationsRequest()
            ).reservations
        except FairleadError as error:
            remedy = hint_of(error) or "check --admin-address and --admin-token-file"
            yield Finding("control-plane", Verdict.WRONG, error.message, remedy)
            return
        yield Finding("control-plane", Verdict.GOOD, f"{settings.admin_address} answers and takes the token")
        yield _leaders(list(services))
        yield _replicas(list(models), list(replicas))
        yield from _quotas(connection, list(reservations))


def _leaders(services: list[admin_pb2.ServiceInstance]) -> Finding:
    leaders = Counter(service.service for service in services if service.leader)
    without = [name for name in LED_SERVICES if not leaders[name]]
    routers = sum(service.service == "router" for service in services)
    if without:
        return Finding(
            "services",
            Verdict.WRONG,
            f"nobody leads: {', '.join(without)}",
            "see whether it runs (`fairlead services`) and reaches etcd; a new leader is elected within 5 s",
        )
    if not routers:
        return Finding("services", Verdict.WRONG, "no router is registered", "start one, and see that it reaches etcd")
    if not leaders[AUTOSCALER]:
        return Finding(
            "services",
            Verdict.DOUBTFUL,
            f"no autoscaler leads; {routers} routers",
            "right where replicas are scaled by hand, as in containers; elsewhere start it",
        )
    return Finding("services", Verdict.GOOD, f"every service has a leader; {routers} routers")


def _replicas(models: list[admin_pb2.Model], replicas: list[engine_pb2.Replica]) -> Finding:
    if not models:
        return Finding("replicas", Verdict.DOUBTFUL, "there is no model", "fairlead models create --help")
    ready = Counter(replica.model_id for replica in replicas if replica.state == engine_pb2.REPLICA_STATE_READY)
    idle = [model.model_id for model in models if not ready[model.model_id]]
    if idle:
        return Finding(
            "replicas",
            Verdict.WRONG,
            f"no replica is ready for {', '.join(idle)}",
            "see `fairlead replicas list`, the autoscaler's log, and replicas_min of the model",
        )
    sick = [replica.replica_id for replica in replicas if replica.state == engine_pb2.REPLICA_STATE_UNHEALTHY]
    if sick:
        return Finding(
            "replicas", Verdict.DOUBTFUL, f"unhealthy: {', '.join(sick)}", "they are restarted by themselves"
        )
    return Finding("replicas", Verdict.GOOD, ", ".join(f"{model}: {count} ready" for model, count in ready.items()))


def _quotas(connection: AdminConnection, reservations: list[admin_pb2.Reservation]) -> Iterator[Finding]:
    stamps: list[float] = []
    try:
        ledger = connection.call(connection.capacity.ListCapacity, capacity_pb2.ListCapacityRequest())
    except FairleadError as error:
        yield Finding(
            "quotas", Verdict.WRONG, f"the capacity allocator cannot be asked: {error.message}", hint_of(error)
        )
    else:
        stamps.append(ledger.compute_time.ToNanoseconds() / 1e9)
        granted = {(model.model_id, quota.tenant_id) for model in ledger.models for quota in model.quotas}
        without = [
            f"{entry.tenant_id} on {entry.model_id}"
            for entry in reservations
            if (entry.model_id, entry.tenant_id) not in granted
        ]
        short = {
            model.model_id: model.shortfall_milli_mu_per_minute
            for model in ledger.models
            if model.shortfall_milli_mu_per_minute
        }
        if without:
            yield Finding(
                "quotas", Verdict.WRONG, f"no quota was granted to {', '.join(without)}", "see the allocator's log"
            )
        elif short:
            parts = ", ".join(f"{model} lacks {mu(missing)} MU/min" for model, missing in short.items())
            remedy = "more is sold than is there: raise replicas_max, or lower reservations (fairlead capacity show)"
            yield Finding("quotas", Verdict.WRONG, parts, remedy)
        elif not reservations:
            yield Finding(
                "quotas", Verdict.DOUBTFUL, "no tenant has a quota", "fairlead quota set TENANT MODEL --reserved MU"
            )
        else:
            yield Finding("quotas", Verdict.GOOD, f"all {len(reservations)} reservations are covered")
    try:
        tables = connection.call(connection.limiter.ListLeases, quota_pb2.ListLeasesRequest()).tables
    except FairleadError as error:
        yield Finding("leases", Verdict.WRONG, f"the rate limiter cannot be asked: {error.message}", hint_of(error))
    else:
        stamps += [table.grant_time.ToNanoseconds() / 1e9 for table in tables]
        routers = ", ".join(table.router_id for table in tables)
        if tables:
            yield Finding("leases", Verdict.GOOD, f"held by {routers}")
        else:
            yield Finding(
                "leases", Verdict.DOUBTFUL, "no router holds a lease", "do the routers reach the rate limiter?"
            )
    yield _clock(stamps)


def _clock(stamps: list[float]) -> Finding:
    newest = max(stamps, default=0.0)
    if newest <= 0:
        return Finding("clock", Verdict.SKIPPED, "the platform said no time")
    ahead_s = newest - time.time()
    # A stamp of the past may simply be old; one of the future cannot be.
    if ahead_s > CLOCK_SKEW_MAX_S:
        return Finding(
            "clock",
            Verdict.DOUBTFUL,
            f"the platform's clock is {ahead_s:.0f} s ahead of this machine's",
            "set both by NTP; quotas and leases do not depend on it, certificates and logs do",
        )
    if ahead_s < -60:
        return Finding(
            "clock",
            Verdict.DOUBTFUL,
            f"the platform's newest timestamp is {-ahead_s:.0f} s old",
            "either its clock is behind (set it by NTP), or the allocator and the rate limiter stand still",
        )
    return Finding("clock", Verdict.GOOD, "agrees with the platform's")

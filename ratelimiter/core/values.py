"""What goes into the limiter and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate


class Workload(NamedTuple):
    """A (model, tenant): what quotas and leases are about. Sorts by model, then tenant."""

    model_id: str
    tenant_id: str


class Version(NamedTuple):
    """Orders lease tables: first by the granting leader's epoch, then by number. (0, 0) is no table."""

    epoch: int
    number: int


NO_TABLE = Version(0, 0)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a workload may use over all routers.

    Attributes:
        granted: Now, milli-MU per minute.
        guaranteed: Covered part of the reservation, milli-MU per minute: the ceiling of all safe rates together.
    """

    granted: Rate
    guaranteed: Rate


@dataclass(frozen=True, slots=True)
class Want:
    """What one router would use of one workload; fields as in fairlead.quota.v1.Want."""

    wants: Rate
    used: Rate
    held: MilliModelUnits


@dataclass(frozen=True, slots=True)
class Report:
    """A router's report; fields as in fairlead.quota.v1.ReportWantsRequest.

    Attributes:
        router_id: Stable over restarts.
        incarnation_id: One per process.
        number: Counts the incarnation's reports from 1.
        applied: The tables the router applies, by shard; it never goes back to an older one.
        wants: By workload; absent means nothing wanted.
    """

    router_id: str
    incarnation_id: str
    number: int
    applied: Mapping[int, Version]
    wants: Mapping[Workload, Want]


@dataclass(frozen=True, slots=True)
class Lease:
    """One workload's share at one router; fields as in fairlead.quota.v1.Lease."""

    rate: Rate
    burst: MilliModelUnits
    safe_rate: Rate
    quota: Rate


@dataclass(frozen=True, slots=True)
class Table:
    """The leases of one router process on one shard of the tenants.

    Attributes:
        router_id: The router.
        incarnation_id: The process the leases were granted to.
        shard: The shard, 0-based.
        version: Newer replaces older.
        report_number: The report it answers: lease time runs from that report's sending.
        lease_ns: How long the leases run.
        leases: By workload, sorted; workloads without a rate are left out.
        outstanding: Where the router, or an earlier process of it, may still spend more than `leases` says: the most
            it may spend under any table not yet superseded or expired. For the next leader.
    """

    router_id: str
    incarnation_id: str
    shard: int
    version: Version
    report_number: int
    lease_ns: int
    leases: Mapping[Workload, Lease]
    outstanding: Mapping[Workload, Rate]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a report; fields as in fairlead.quota.v1.ReportWantsResponse.

    Attributes:
        epoch: Of the answering leader.
        report_number: The report.
        lease_ns: How long everything named here runs from that report's sending.
        tables: To be applied instead of older ones of their shard; stored before they are sent.
        renewed: Tables the router applies that run on, by shard.
    """

    epoch: int
    report_number: int
    lease_ns: int
    tables: tuple[Table, ...]
    renewed: Mapping[int, Version]


@dataclass(frozen=True, slots=True)
class Actions:
    """What the limiter wants done.

    Attributes:
        tables: To write and deliver, unasked.
        routers_gone: Routers without any lease left, all of whose tables can be deleted.
    """

    tables: tuple[Table, ...] = ()
    routers_gone: tuple[str, ...] = ()

"""What is simulated: models and their replicas, tenants and their traffic, and what goes wrong. A TOML file.

The smallest one, which plays the recorded traffic that ships with Fairlead:

    [[model]]
    id = "chat"
    replicas = 4

    [[tenant]]
    id = "acme"
    reservation_mu_per_minute = 300
    load = 0.65

Names end with their unit. `docs/simulation.md` explains every key.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_plane.router.core.policies.registry import POLICIES, PRODUCT
from fairlead.errors import InvalidArgumentError
from simulation.checks import check_failures, check_replicas, check_settings
from simulation.fields import changed, choice, number, read_fields, suggestion

EXCERPT = "excerpt"
"""The workload that ships with Fairlead: two minutes of a conversation service."""

SYNTHETIC = "synthetic"
"""Poisson arrivals with lognormal lengths."""

CHAT = "chat"
"""Sessions of several turns, each of which sends all of the conversation so far."""

POLICY_NAMES = (PRODUCT, *POLICIES)
"""How routers may pick a replica: the platform's default, and everything it may be told to do."""

# Tenants of one entry play a recorded workload this much apart; no divisor of any trace's length.
_COPY_SHIFT_S = 97.13


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A model and the replicas it starts with.

    Attributes:
        id: Its name.
        hardware: Label of the simulated hardware, as in engines/simulated.
        replicas: How many are ready at the start.
        profile: Cost profile that prices it; empty takes the newest of the hardware.
        target_utilization: Share of live capacity that may be promised.
        cold_start_s: From the start of a replica to its first request.
        replicas_min: Fewest the autoscaler keeps.
        replicas_max: Most it runs; 0 means as many as there are at the start.
        sequences_max: Most requests inside one engine.
        step_tokens_max: Chunk budget of one engine step, tokens.
        queued_max: Most requests that wait in one agent.
    """

    id: str
    hardware: str = "h100"
    replicas: int = number(1, maximum=10_000)
    profile: str = ""
    target_utilization: float = number(0.8, minimum=0.01, maximum=1.0)
    cold_start_s: float = number(60.0)
    replicas_min: int = number(0)
    replicas_max: int = number(0)
    sequences_max: int = number(256, minimum=1)
    step_tokens_max: int = number(2_048, minimum=1)
    queued_max: int = number(512)


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantSpec:
    """One tenant of one model, or `count` alike.

    Attributes:
        id: Its name; with a `count` the tenants are called id-1, id-2, ...
        model: The model it uses; empty takes the first.
        count: How many such tenants; a recorded workload is shifted for each.
        zipf: 0 gives each of them all that the entry says; above 0 they share its load, rates, reservation and burst by
            Zipf's law of this exponent.
        reservation_mu_per_minute: What it bought.
        burst_mu_per_minute: Most it may be lent; 0 means its reservation.
        tier: 1 (first in a shortfall) to 9.
        weight: Share of lent capacity among equals.
        priority: interactive, or batch, which waits for quota.
        workload: "excerpt", "synthetic", "chat", or a trace file's name.
        client: Only this client of the workload; empty means all.
        rate_scale: How much faster than recorded.
        load: Instead of rate_scale: the rate at which its work is this share of what its model's replicas serve at
            the start; 0 leaves rate_scale in force.
        start_s: When its traffic begins.
        end_s: When it ends; 0 means never.
        offset_s: Where in a recorded workload it begins.
        requests_per_s: Synthetic and chat: mean rate.
        input_tokens: Synthetic: median prompt; chat: of what a turn adds to it.
        input_sigma: Synthetic and chat: sigma of its logarithm.
        output_tokens: Synthetic and chat: median output.
        output_sigma: Synthetic and chat: sigma of its logarithm.
        turns: Chat: mean requests of a session.
        think_s: Chat: mean time from the end of an answer to the next turn.
        system_tokens: Chat: beginning of the prompt that all sessions of the tenant share.
        surge_at_s: When its rate changes.
        surge_for_s: How long; 0 means for good.
        surge_factor: To how many times what it was.
        noise: Its rate wanders by up to this share up and down, drawn anew every half minute.
        max_tokens: What its requests ask for at most; longer recorded outputs raise it.
        bytes_per_token: Of its text; the router reckons with 4 until it has learned.
        session: What its session ids follow: none, client or prefix (the prompt's first block).
        retries_max: How often it repeats a refused request.
        patience_s: It gives up on a first token after this; 0 means never.
        deadline_s: It gives up on the end after this.
    """

    id: str
    model: str = ""
    count: int = number(1, minimum=1, maximum=10_000)
    zipf: float = number(0.0, maximum=5.0)
    reservation_mu_per_minute: float = number(0.0)
    burst_mu_per_minute: float = number(0.0)
    tier: int = number(5, minimum=1, maximum=9)
    weight: int = number(1, minimum=1, maximum=1_000)
    priority: str = choice("interactive", "interactive", "batch")
    workload: str = EXCERPT
    client: str = ""
    rate_scale: float = number(1.0, minimum=1e-6, maximum=10_000.0)
    load: float = number(0.0, maximum=100.0)
    start_s: float = number(0.0)
    end_s: float = number(0.0)
    offset_s: float = number(0.0)
    requests_per_s: float = number(1.0, minimum=1e-6)
    input_tokens: int = number(1_000, minimum=1, maximum=1_000_000)
    input_sigma: float = number(0.8, maximum=3.0)
    output_tokens: int = number(150, minimum=1, maximum=1_000_000)
    output_sigma: float = number(0.8, maximum=3.0)
    turns: float = number(5.0, minimum=1.0, maximum=1_000.0)
    think_s: float = number(20.0, maximum=3_600.0)
    system_tokens: int = number(0, maximum=16_384)
    surge_at_s: float = number(0.0)
    surge_for_s: float = number(0.0)
    surge_factor: float = number(1.0, maximum=1_000.0)
    noise: float = number(0.0, maximum=1.0)
    max_tokens: int = number(4_096, minimum=1)
    bytes_per_token: float = number(4.0, minimum=0.5, maximum=50.0)
    session: str = choice("none", "none", "client", "prefix")
    retries_max: int = number(0, maximum=100)
    patience_s: float = number(0.0)
    deadline_s: float = number(600.0, minimum=1.0, maximum=86_400.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureSpec:
    """Something that goes wrong with one replica.

    Attributes:
        at_s: When.
        kind: crash (its process dies), freeze (its machine stands still), slow (its engine is `slow_factor` times
            slower) or drain (it is taken out on purpose).
        model: Whose replica; empty takes the first model.
        replica: Which one, counted from 1.
        heal_after_s: When it is started again (crash, drain), goes on (freeze) or is well again (slow); 0 means never.
        slow_factor: For slow.
    """

    at_s: float = number(0.0)
    kind: str = choice("crash", "crash", "freeze", "slow", "drain")
    model: str = ""
    replica: int = number(1, minimum=1)
    heal_after_s: float = number(0.0)
    slow_factor: float = number(2.0, minimum=0.01, maximum=1_000.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSpec:
    """More replicas of a model, on other hardware: what they can do is `speed` times what the model's own can.

    Attributes:
        model: Whose; empty takes the first.
        replicas: How many; they are numbered after the model's own.
        speed: How many times as fast their engines are.
    """

    model: str = ""
    replicas: int = number(1, minimum=1, maximum=10_000)
    speed: float = number(1.0, minimum=0.05, maximum=20.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What stands at the top of a scenario.

    Attributes:
        name: For reports; the file's name where it is empty.
        seed: Of everything random.
        duration_s: How long traffic comes; requests in flight are served to their end.
        routers: How many share the traffic.
        report_interval_s: How often a replica reports its load to each router.
        report_delay_s: How old a report is when it arrives.
        answers_report: Whether answers carry reports too, which arrive with them at once.
        control_delay_s: From a write in the store to whoever watches it.
        quota: Whether tenants get what they bought; without it everything is admitted, to look at routing alone.
        sharder: on; fixed, which keeps the first placement but for failures; or whole_fleet, where every replica serves
            everybody.
        policy: How routers pick a replica: product, or one to compare it with.
        autoscaler: Whether replicas follow demand.
        scale_window_s: How long need must be lower before the autoscaler removes a replica.
    """

    name: str = ""
    seed: int = number(1, minimum=0)
    duration_s: float = number(120.0, minimum=0.1, maximum=31_536_000.0)
    routers: int = number(2, minimum=1, maximum=1_000)
    report_interval_s: float = number(1.0, minimum=0.1, maximum=10.0)
    report_delay_s: float = number(0.005, maximum=60.0)
    answers_report: bool = True
    control_delay_s: float = number(0.05, maximum=60.0)
    quota: bool = True
    sharder: str = choice("on", "on", "fixed", "whole_fleet")
    policy: str = choice(PRODUCT, *POLICY_NAMES)
    autoscaler: bool = False
    scale_window_s: float = number(300.0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """All of it, checked. Every tenant stands alone here: counts are resolved and names of models filled in."""

    settings: Settings
    models: tuple[ModelSpec, ...]
    tenants: tuple[TenantSpec, ...]
    failures: tuple[FailureSpec, ...] = ()
    groups: tuple[GroupSpec, ...] = ()

    def speeds(self, model_id: str) -> tuple[float, ...]:
        """The speed of every replica that a model starts with, in the order of their numbers."""
        model = next(model for model in self.models if model.id == model_id)
        groups = [group for group in self.groups if group.model == model_id]
        return (1.0,) * model.replicas + tuple(group.speed for group in groups for _ in range(group.replicas))


def read_scenario(path: Path) -> Scenario:
    """Reads a scenario file.

    Raises:
        InvalidArgumentError: It cannot be read or is wrong; the message names the key and says what to do.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"cannot read the scenario {path}: {error}", field="scenario") from None
    scenario = parse_scenario(text)
    named = replace(scenario.settings, name=scenario.settings.name or path.stem)
    return replace(scenario, settings=named)


def parse_scenario(text: str) -> Scenario:
    """Reads a scenario from TOML text; errors as in `read_scenario`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgumentError(f"the scenario is not TOML: {error}", field="scenario") from None
    tables = {name: _tables(raw, name) for name in ("model", "tenant", "failure", "group")}
    unknown = [name for name in raw if name not in tables and name not in Settings.__dataclass_fields__]
    if unknown:
        known = [*tables, *Settings.__dataclass_fields__]
        raise InvalidArgumentError(f"unknown key {unknown[0]!r}{suggestion(unknown[0], known)}", field=unknown[0])
    settings = read_fields(Settings, {name: raw[name] for name in raw if name not in tables}, "scenario")
    models = [read_fields(ModelSpec, table, f"model {_name(table, at)}") for at, table in enumerate(tables["model"], 1)]
    tenants = [
        read_fields(TenantSpec, table, f"tenant {_name(table, at)}") for at, table in enumerate(tables["tenant"], 1)
    ]
    failures = [read_fields(FailureSpec, table, f"failure {at}") for at, table in enumerate(tables["failure"], 1)]
    groups = [read_fields(GroupSpec, table, f"group {at}") for at, table in enumerate(tables["group"], 1)]
    return make_scenario(settings, models, tenants, failures, groups)


def overridden(scenario: Scenario, changes: Mapping[str, object]) -> Scenario:
    """A scenario with other settings.

    Args:
        scenario: Checked.
        changes: Settings by name, as they would stand at the top of its file.

    Raises:
        InvalidArgumentError: They would be refused there too.
    """
    settings = changed(scenario.settings, changes, "scenario")
    check_failures(scenario.failures, scenario.models, scenario.groups, settings.duration_s)
    check_settings(settings)
    return replace(scenario, settings=settings)


def make_scenario(
    settings: Settings,
    models: list[ModelSpec],
    tenants: list[TenantSpec],
    failures: list[FailureSpec] | None = None,
    groups: list[GroupSpec] | None = None,
) -> Scenario:
    """Checks what belongs together.

    Raises:
        InvalidArgumentError: No model or tenant, a name twice, a name that nothing has, or two values of which one
            leaves the other no meaning.
    """
    if not models or not tenants:
        raise InvalidArgumentError("a scenario needs at least one [[model]] and one [[tenant]]", field="scenario")
    ids = [model.id for model in models]
    resolved = [replace(each, model=each.model or ids[0]) for tenant in tenants for each in _copies(tenant)]
    broken = [replace(failure, model=failure.model or ids[0]) for failure in failures or []]
    grouped = [replace(group, model=group.model or ids[0]) for group in groups or []]
    for kind, names in (("model", ids), ("tenant", [tenant.id for tenant in resolved])):
        for name, times in Counter(names).items():
            if not name or "/" in name or times > 1:
                raise InvalidArgumentError(f"{kind} ids must differ and have no '/': {name!r}", field=kind)
    named = [(f"tenant {each.id!r}", each.model) for each in resolved]
    named += [("a failure", each.model) for each in broken] + [("a group", each.model) for each in grouped]
    for what, name in named:
        if name not in ids:
            raise InvalidArgumentError(f"{what} names the model {name!r}{suggestion(name, ids)}", field="model")
    for model in models:
        check_replicas(model)
    for each in resolved:
        if each.end_s and each.end_s <= each.start_s:
            raise InvalidArgumentError(
                f"tenant {each.id!r}: end_s {each.end_s:g} is not after start_s {each.start_s:g}, so it sends nothing",
                field="end_s",
            )
    check_failures(broken, models, grouped, settings.duration_s)
    check_settings(settings)
    return Scenario(settings, tuple(models), tuple(resolved), tuple(broken), tuple(grouped))


def _copies(tenant: TenantSpec) -> list[TenantSpec]:
    if tenant.count == 1:
        return [tenant]
    copies = [
        replace(tenant, id=f"{tenant.id}-{at + 1}", count=1, offset_s=tenant.offset_s + at * _COPY_SHIFT_S)
        for at in range(tenant.count)
    ]
    if not tenant.zipf:
        return copies
    parts = [rank**-tenant.zipf for rank in range(1, tenant.count + 1)]
    return [_shared(copy, part / sum(parts)) for copy, part in zip(copies, parts, strict=True)]


def _shared(tenant: TenantSpec, part: float) -> TenantSpec:
    """A tenant with its part of what those of its entry share."""
    return replace(
        tenant,
        load=part * tenant.load,
        rate_scale=part * tenant.rate_scale,
        requests_per_s=part * tenant.requests_per_s,
        reservation_mu_per_minute=part * tenant.reservation_mu_per_minute,
        burst_mu_per_minute=part * tenant.burst_mu_per_minute,
    )


def _tables(raw: dict[str, object], name: str) -> list[dict[str, object]]:
    tables = raw.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidArgumentError(f"{name} must be written as [[{name}]]", field=name)
    return tables


def _name(table: dict[str, object], at: int) -> str:
    return repr(table["id"]) if isinstance(table.get("id"), str) else str(at)

"""Why a quota is what it is: the numbers of its computation as sentences. Nothing is computed a second time."""

from __future__ import annotations

from capacity.core.phrases import amount, domain, fleet
from capacity.core.values import ModelLedger, TenantQuota


def explain(ledger: ModelLedger, quota: TenantQuota, *, doubted: bool = False) -> tuple[str, ...]:
    """The steps from live capacity to one tenant's quota.

    Args:
        ledger: The model's.
        quota: The tenant's row of it.
        doubted: Whether the ledger's capacity is not believed now, so that the stored quotas stand.

    Returns:
        One sentence per step, in order.
    """
    steps = [_capacity(ledger), _headroom(ledger), _guarantee(ledger, quota), _wants(quota)]
    if quota.guaranteed > 0:
        steps.append(_lending(quota))
    steps.append(_borrowing(quota))
    steps.append(_idle(quota))
    steps.append(_sum(quota))
    if doubted:
        steps.append("Live capacity collapsed a moment ago and is not believed yet: the last quotas stand for now.")
    return tuple(step for step in steps if step)


def _capacity(ledger: ModelLedger) -> str:
    if ledger.replicas_ready == 0:
        return f"{ledger.model_id} has no ready replica, so there is nothing to share."
    make = "makes" if ledger.replicas_ready == 1 else "make"
    return f"{fleet(ledger.replicas_ready, ledger.target_utilization_ppm)} {make} {amount(ledger.have)}."


def _headroom(ledger: ModelLedger) -> str:
    if ledger.largest_domain is None:
        return ""
    return (
        f"Of that {amount(ledger.sellable)} may be sold: {domain(ledger.largest_domain)} may be lost, and is only lent."
    )


def _guarantee(ledger: ModelLedger, quota: TenantQuota) -> str:
    if quota.reserved == 0:
        return "It reserved nothing: it lives on what others leave."
    if quota.guaranteed == quota.reserved:
        return f"It reserved {amount(quota.reserved)}, which live capacity covers."
    return (
        f"It reserved {amount(quota.reserved)}, of which live capacity covers {amount(quota.guaranteed)}: "
        f"{amount(ledger.sold)} are sold, and {amount(ledger.shortfall)} are missing, shared by tier (its own is "
        f"{quota.tier}), then by weight (its own is {quota.weight})."
    )


def _wants(quota: TenantQuota) -> str:
    if quota.counted == quota.wants:
        return f"It wants {amount(quota.wants)}."
    why = "rounded up, at its height lately" if quota.counted > quota.wants else "its ceiling, or what it was lately"
    return f"It wants {amount(quota.wants)}, counted as {amount(quota.counted)} ({why})."


def _lending(quota: TenantQuota) -> str:
    if quota.kept == quota.guaranteed:
        return f"It keeps all of its guarantee of {amount(quota.guaranteed)}."
    may_lend = quota.guaranteed - quota.kept
    kept = f"Of its guarantee it keeps {amount(quota.kept)} whatever others want: twice its wants, at least half."
    if quota.lent == 0:
        return f"{kept} Nobody needs the other {amount(may_lend)}."
    return f"{kept} Of the other {amount(may_lend)}, {amount(quota.lent)} is lent, and back as soon as it is wanted."


def _borrowing(quota: TenantQuota) -> str:
    missing = max(0, quota.counted - quota.guaranteed)
    if missing == 0:
        return ""
    if quota.borrowed == missing:
        return f"All it wants above its guarantee is lent to it: {amount(quota.borrowed)}."
    return (
        f"Of the {amount(missing)} it wants above its guarantee, {amount(quota.borrowed)} is lent to it: the rest went "
        f"to others by weight (its own is {quota.weight})."
    )


def _idle(quota: TenantQuota) -> str:
    if quota.idle == 0:
        return ""
    return f"Its share of capacity that nobody wants is {amount(quota.idle)}, so that a burst needs no round trip."


def _sum(quota: TenantQuota) -> str:
    parts = f"{amount(quota.guaranteed)} guaranteed"
    if quota.lent:
        parts += f" - {amount(quota.lent)} lent"
    if quota.borrowed:
        parts += f" + {amount(quota.borrowed)} borrowed"
    if quota.idle:
        parts += f" + {amount(quota.idle)} idle share"
    return f"Granted: {parts} = {amount(quota.granted)}, of at most {amount(quota.ceiling)}."

"""Ledgers kept up to date: a change costs the models it is about, and a round without news costs nothing.

The same computation as `allocate`, model by model, with two differences in time: wants are counted steadily
(capacity.core.wants), and a round that would move no quota notably keeps the quotas of an earlier round with all the
numbers behind them, because every new quota is written, leased again and told to every router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from capacity.core.allocate import demand_columns, have_of, ledger_of
from capacity.core.columns import Column
from capacity.core.shares import share_out
from capacity.core.values import NO_DEMAND, Demand, Model, ModelLedger, Quotas, Replica, Reservation, Shares, Sold
from capacity.core.wants import SteadyWants
from common.clock import MonotonicNs

ModelDemand = Mapping[str, Mapping[str, Demand]]
"""By model id, by tenant id."""

# Quotas stand while none would move by more than one part in this many. As fine as wants are counted.
NOTABLE_PARTS = 16


@dataclass
class _Books:
    """Everything about one model."""

    replicas: dict[str, Replica] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    demand: Mapping[str, Demand] = field(default_factory=dict)
    model: Model | None = None
    sold: Sold | None = None
    steady: SteadyWants = field(default_factory=SteadyWants)
    ledger: ModelLedger | None = None


class LiveLedgers:
    """Takes changes one by one and computes the models they are about."""

    def __init__(self) -> None:
        self._books: dict[str, _Books] = {}
        self._model_of_replica: dict[str, str] = {}
        self._changed: set[str] = set()

    @property
    def ledgers(self) -> tuple[ModelLedger, ...]:
        """Of every known model as last computed, sorted by model."""
        return tuple(books.ledger for _, books in sorted(self._books.items()) if books.ledger is not None)

    @property
    def demand(self) -> ModelDemand:
        """As last taken, of models that are known or named by a reservation, a replica or a report."""
        return {model_id: books.demand for model_id, books in self._books.items()}

    def set_replica(self, key: str, replica: Replica | None) -> None:
        """A replica's record as it is now; None when it is gone. `key` is any name of the record, always the same."""
        before = self._model_of_replica.pop(key, None)
        if before is not None:
            self._of(before).replicas.pop(key)
        if replica is not None:
            self._model_of_replica[key] = replica.model_id
            self._of(replica.model_id).replicas[key] = replica

    def set_model(self, model_id: str, model: Model | None) -> None:
        """A model as it is now; None when it is gone."""
        self._of(model_id).model = model

    def set_reservation(self, model_id: str, tenant_id: str, reservation: Reservation | None) -> None:
        """A reservation as it is now; None when it is gone."""
        books = self._of(model_id)
        books.sold = None
        if reservation is None:
            books.reservations.pop(tenant_id, None)
        else:
            books.reservations[tenant_id] = reservation

    def set_demand(self, demand: ModelDemand) -> bool:
        """All demand as it is now, by model and tenant; what is not named is not wanted. True if any differs."""
        changed = False
        for model_id in demand.keys() | self._books.keys():
            wanted = demand.get(model_id, {})
            known = self._books.get(model_id)
            if (known.demand if known else {}) != wanted:
                self._of(model_id).demand = wanted
                changed = True
        return changed

    def changed(self, now: MonotonicNs) -> list[str]:
        """Models to compute: their inputs changed, or time alone may change what is counted; sorted."""
        due = {model_id for model_id, books in self._books.items() if books.ledger and books.steady.is_due(now)}
        return sorted(self._changed | due)

    def compute(self, model_id: str, now: MonotonicNs) -> ModelLedger | None:
        """Computes one model.

        Args:
            model_id: One of `changed`.
            now: Current time.

        Returns:
            Its ledger; None when there is no such model any more.
        """
        self._changed.discard(model_id)
        books = self._books[model_id]
        if books.model is None:
            books.ledger = None
            if not (books.replicas or books.reservations or books.demand):
                del self._books[model_id]
            return None
        if books.sold is None:
            books.sold = Sold(list(books.reservations.values()))
        sold = books.sold
        wants, used = demand_columns([books.demand.get(tenant, NO_DEMAND) for tenant in sold.tenants])
        counted = books.steady.count(sold.tenants, np.minimum(wants, sold.ceiling), now)
        ready = [replica for replica in books.replicas.values() if replica.ready]
        shares = _shares(books.ledger, have_of(books.model, ready), sold, counted)
        books.ledger = ledger_of(books.model, ready, Quotas(sold, shares, wants, used))
        return books.ledger

    def _of(self, model_id: str) -> _Books:
        self._changed.add(model_id)
        return self._books.setdefault(model_id, _Books())


def _shares(before: ModelLedger | None, have: int, sold: Sold, counted: Column) -> Shares:
    if before is None or before.have != have or before.columns.sold is not sold:
        return share_out(have, sold, counted)
    held = before.columns.shares
    if np.array_equal(held.counted, np.minimum(counted, sold.ceiling)):
        return held
    fresh = share_out(have, sold, counted)
    return held if may_stand(held, fresh) else fresh


def may_stand(held: Shares, fresh: Shares) -> bool:
    """Whether quotas of an earlier round may stand, given the same capacity and reservations.

    Args:
        held: That round's.
        fresh: What this round would be.

    Returns:
        True if no quota would move by more than 1/16, and everybody holds what it wants or all it would get.
    """
    old, new = held.granted, fresh.granted
    served = old >= np.minimum(new, np.maximum(fresh.kept, fresh.counted))
    near = abs(new - old) * NOTABLE_PARTS <= np.maximum(old, new)
    return bool((served & near).all())

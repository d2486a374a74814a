"""The checkers themselves: each accepts what keeps its promise and names what breaks it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import checkers
from tests.faults.books import RouterBooks
from tests.faults.checkers import Allowance, Write
from tests.faults.load import CANCELLED, COMPLETED, FAILED, LOST, REFUSED, History, Record

# 60 mMU/s in requests of 6: ten per second keep the quota exactly.
RATE, COST, BURST = 3_600, 6, 60
OVERDUE = ("acme", "failed", "DEADLINE_EXCEEDED")


def sent(at_s: float, outcome: str = COMPLETED, cost: int = COST, reason: str = "") -> Record:
    return Record("acme", "router-1", at_s, at_s + 0.01, at_s + 0.05, outcome, reason, cost)


def every(step_s: float, until_s: float) -> list[Record]:
    return [sent(number * step_s) for number in range(int(until_s / step_s))]


def book(received: int, **finished: int) -> RouterBooks:
    counts = Counter({("acme", outcome, ""): count for outcome, count in finished.items()})
    return RouterBooks(received, counts, 0, 0, Counter({"acme": COST * finished.get("completed", 0)}), Counter())


def test_work_within_rate_and_burst_passes() -> None:
    """Exactly the rate, and a burst on top, are within; so is a burst after a pause."""
    checkers.admitted_within(every(0.1, 20), rate_milli_mu_per_minute=RATE, burst_milli_mu=BURST)
    late = [sent(30 + 0.001 * number) for number in range(10)]
    checkers.admitted_within([*every(0.1, 20), *late], rate_milli_mu_per_minute=RATE, burst_milli_mu=BURST)


def test_a_window_over_the_bound_is_found_wherever_it_is() -> None:
    """A short burst in the middle of a modest hour is over the bound, and so is a rate a little too high."""
    middle = [sent(10 + 0.001 * number) for number in range(14)]
    with pytest.raises(AssertionError, match="over the bound"):
        checkers.admitted_within([*every(1.0, 20), *middle], rate_milli_mu_per_minute=RATE, burst_milli_mu=BURST)
    with pytest.raises(AssertionError, match="over the bound"):
        checkers.admitted_within(every(0.09, 30), rate_milli_mu_per_minute=RATE, burst_milli_mu=BURST)


def test_an_allowance_counts_while_it_runs_and_not_longer() -> None:
    """What a fault may add is added inside its time only."""
    records = [*every(0.1, 20), *(sent(5 + 0.1 * number) for number in range(50))]
    with pytest.raises(AssertionError):
        checkers.admitted_within(records, rate_milli_mu_per_minute=RATE, burst_milli_mu=BURST)
    fitting, short = Allowance(5, 10, RATE), Allowance(5, 7, RATE)
    checkers.admitted_within(records, rate_milli_mu_per_minute=RATE, burst_milli_mu=BURST, allowances=[fitting])
    with pytest.raises(AssertionError):
        checkers.admitted_within(records, rate_milli_mu_per_minute=RATE, burst_milli_mu=BURST, allowances=[short])


def test_a_refusal_or_a_loss_within_the_quota_is_found() -> None:
    """One refused, failed or lost request among many good ones is enough."""
    good = every(0.1, 2)
    checkers.never_refused(good)
    for bad in (sent(3, REFUSED, 0, "QUOTA_USED_UP"), sent(3, FAILED, 0, "NO_REPLICA"), sent(3, LOST, 0)):
        with pytest.raises(AssertionError):
            checkers.never_refused([*good, bad])
    checkers.never_refused([*good, sent(3, LOST, 0)], lost_max=1)
    with pytest.raises(AssertionError):
        checkers.never_refused([])


def test_unused_quota_is_found() -> None:
    """Half the quota used is not nine tenths of it."""
    checkers.used_at_least(every(0.1, 10), from_s=0, to_s=10, rate_milli_mu_per_minute=RATE, share=0.9)
    with pytest.raises(AssertionError, match="used in"):
        checkers.used_at_least(every(0.2, 10), from_s=0, to_s=10, rate_milli_mu_per_minute=RATE, share=0.9)


def test_books_that_disagree_are_found() -> None:
    """A request that is counted twice, not at all, or as something else shows."""
    cancelled = sent(1, CANCELLED, 0)
    history = History([sent(0), cancelled])
    checkers.books_agree(history, {"router-1": book(2, completed=1, cancelled=1)})
    # The router may have finished before the cancellation reached it.
    checkers.books_agree(history, {"router-1": book(2, completed=2)})
    overdue = replace(book(2, completed=1), finished=Counter({("acme", "completed", ""): 1, OVERDUE: 1}))
    checkers.books_agree(history, {"router-1": overdue})
    checkers.books_agree(History([*history.records, sent(2, LOST, 0)]), {"router-1": book(3, completed=3)})
    for wrong in (
        book(2, completed=1, cancelled=2),
        book(3, completed=2, cancelled=1),
        book(1, completed=1),
        book(2, cancelled=2),
        book(2, completed=1, refused=1),
        replace(book(2, completed=1, cancelled=1), in_flight=1),
    ):
        with pytest.raises(AssertionError):
            checkers.books_agree(history, {"router-1": wrong})


def test_a_hold_that_outlives_its_request_is_found() -> None:
    """Open holds and held work with nothing in flight are a leak."""
    good = book(1, completed=1)
    checkers.nothing_held({"router-1": good})
    for leak in (replace(good, open_holds=1), replace(good, held_milli_mu=Counter({"acme": 5}))):
        with pytest.raises(AssertionError, match="holds"):
            checkers.nothing_held({"router-1": leak})


def test_charges_nobody_was_told_of_are_found() -> None:
    """Charged must equal told, but for answers whose end the client did not hear."""
    checkers.settled_agrees(History([sent(0)]), {"router-1": book(1, completed=1)}, tenant="acme")
    checkers.settled_agrees(
        History([sent(0), sent(1, CANCELLED, 0)]), {"router-1": book(2, completed=2)}, tenant="acme"
    )
    for count in (0, 2):
        with pytest.raises(AssertionError, match="charged"):
            checkers.settled_agrees(History([sent(0)]), {"router-1": book(1, completed=count)}, tenant="acme")


def test_usage_that_is_lost_is_found() -> None:
    """What a client was told must be stored; that more is stored is the requests nobody was told of."""
    history = History([sent(0), sent(1)])
    checkers.usage_holds(history, "router-1", {"acme": 100}, {"acme": 100 + 2 * COST})
    with pytest.raises(AssertionError, match="usage holds"):
        checkers.usage_holds(history, "router-1", {"acme": 100}, {"acme": 100 + COST})
    with pytest.raises(AssertionError, match="nobody asked"):
        checkers.usage_holds(history, "router-2", {}, {})


def test_writes_of_a_deposed_leader_are_found() -> None:
    """An epoch that goes back, a table that goes back, a deleted table of a living router."""
    first, second = "/fairlead/v1/leases/router-1/0", "/fairlead/v1/leases/router-2/0"
    good = [Write(first, 5, 1), Write(second, 5, 2), Write(first, 9, 1)]
    checkers.epochs_never_go_back(good)
    checkers.tables_stay([*good, Write(second, 0)], ["router-1"])
    for bad in (Write(first, 5, 3), Write(second, 5, 1)):
        with pytest.raises(AssertionError):
            checkers.epochs_never_go_back([*good, bad])
    with pytest.raises(AssertionError, match="deleted"):
        checkers.tables_stay([*good, Write(first, 0)], ["router-1"])


def test_refills_over_the_quota_are_found() -> None:
    """More than the quota at two looks in a row is over it; a share that moves between two looks is not."""
    moving = [{"router-1": 99, "router-2": 1}, {"router-1": 50, "router-2": 50}, {"router-1": 50}]
    checkers.refills_within(moving, limit_milli_mu_per_minute=100)
    with pytest.raises(AssertionError, match="in force"):
        checkers.refills_within([{"router-1": 60, "router-2": 60}] * 2, limit_milli_mu_per_minute=100)
    with pytest.raises(AssertionError, match="looked at"):
        checkers.refills_within([], limit_milli_mu_per_minute=100)


def test_another_admission_is_found() -> None:
    """Two percent more or less is not the same within one."""
    checkers.same_admission(100, 100.9, part=0.01)
    for other in (98, 102):
        with pytest.raises(AssertionError):
            checkers.same_admission(100, other, part=0.01)


def test_torn_snapshots_are_found(tmp_path: Path) -> None:
    """A snapshot that is empty, short or changed is not whole."""
    body = b"the platform's configuration"
    whole = hashlib.sha256(body).digest() + body
    path = tmp_path / "tenants.snapshot"
    path.write_bytes(whole)
    checkers.snapshots_whole(tmp_path)
    for torn in (b"", whole[:32], whole[:-3], whole[:-1] + b"?"):
        path.write_bytes(torn)
        with pytest.raises(AssertionError):
            checkers.snapshots_whole(tmp_path)

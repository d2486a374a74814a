"""The demand a router reports, against a naive one that remembers everything it was ever told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from data_plane.router.core.demand import Demand
from data_plane.router.core.holds import BucketKey

SECOND = 1_000_000_000
KEYS: tuple[BucketKey, ...] = (("b", "m"), ("a", "n"), ("a", "m"))

keys = st.sampled_from(KEYS)
amounts = st.integers(0, 50_000)


@dataclass
class Interval:
    """What happened to one key between two reports."""

    asked: list[int] = field(default_factory=list)
    settled: int = 0
    begin_ns: int = 0
    first_ns: int = 0
    end_ns: int = 0
    short: bool = False


@dataclass
class NaiveKey:
    """Every interval of a key since it was first heard of, the present one last, and the surge's since it rose."""

    intervals: list[Interval]
    rising: list[tuple[list[int], int]] = field(default_factory=list)
    reported: int = 0

    def average(self, half_life_s: float, now_ns: int, *, settled: bool = False) -> float:
        """The rate per minute, as if what an interval brought had come evenly, halved each half-life."""
        total = 0.0
        for each in self.intervals:
            amount = each.settled if settled else sum(each.asked)
            length_s, age_s = (each.end_ns - each.begin_ns) / SECOND, (now_ns - each.end_ns) / SECOND
            if length_s:
                part = -math.expm1(-length_s * math.log(2.0) / half_life_s) / length_s
            else:
                part = math.log(2.0) / half_life_s
            total += amount * 60.0 * part * 0.5 ** (age_s / half_life_s)
        return total

    def surge(self, now_ns: int) -> list[tuple[list[int], int]]:
        """The intervals since demand rose: at most 1.5 s, and never one that is thinner than the last alone."""
        last = self.intervals[-1]
        quiet = not any(sum(asked) for asked, _ in self.rising)
        begin_ns = max(last.begin_ns, last.first_ns) if quiet and any(last.asked) else last.begin_ns
        newest = (last.asked, now_ns - begin_ns)
        joined = [*self.rising, newest]
        length_ns = sum(each[1] for each in joined)
        total = sum(sum(each[0]) for each in joined)
        denser = sum(newest[0]) * length_ns > total * newest[1]
        return [newest] if length_ns > 1.5 * SECOND or denser else joined


def surge_rate(intervals: list[tuple[list[int], int]]) -> float:
    every = [amount for asked, _ in intervals for amount in asked]
    sure = sum(every) - 0.5 * math.sqrt(sum(amount * amount for amount in every))
    return sure * 60.0 * SECOND / max(SECOND / 2, sum(each[1] for each in intervals))


class DemandMachine(RuleBasedStateMachine):
    """Three keys, reports at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.demand = Demand()
        self.woken = 0
        self.demand.on_notable(self.wake)
        self.naive: dict[BucketKey, NaiveKey] = {}
        self.now_ns = 0
        self.reported_ns = 0
        self.notable = False
        self.notable_ever = 0

    def wake(self) -> None:
        self.woken += 1

    def key(self, key: BucketKey) -> NaiveKey:
        if not self.naive:
            self.reported_ns = self.now_ns
        return self.naive.setdefault(key, NaiveKey([Interval(begin_ns=self.reported_ns)]))

    @rule(nanoseconds=st.integers(0, 3 * SECOND) | st.integers(0, 300 * SECOND))
    def wait(self, nanoseconds: int) -> None:
        self.now_ns += nanoseconds

    @rule(key=keys, amount=amounts, times=st.integers(1, 30))
    def wanted(self, key: BucketKey, amount: int, times: int) -> None:
        interval = self.key(key).intervals[-1]
        for _ in range(times):
            self.demand.wanted(key, amount, self.now_ns)
            if not sum(interval.asked):
                interval.first_ns = self.now_ns
            interval.asked.append(amount)

    @rule(key=keys, amount=amounts)
    def used(self, key: BucketKey, amount: int) -> None:
        self.key(key).intervals[-1].settled += amount
        self.demand.used(key, amount, self.now_ns)

    @rule(key=keys)
    def short(self, key: BucketKey) -> None:
        naive = self.key(key)
        naive.intervals[-1].short = True
        self.demand.short(key, self.now_ns)
        rises = surge_rate(naive.surge(self.now_ns)) > naive.reported + naive.reported // 8 + 1.0
        if rises and not self.notable:
            self.notable = True
            self.notable_ever += 1

    @rule(held=st.dictionaries(keys, amounts), waiting=st.dictionaries(keys, amounts))
    def report(self, held: dict[BucketKey, int], waiting: dict[BucketKey, int]) -> None:
        for key in (*held, *waiting):
            self.key(key)
        rows = {
            (row.tenant_id, row.model_id): row for row in self.demand.report(self.now_ns, held=held, waiting=waiting)
        }
        assert list(rows) == sorted(rows, key=lambda key: (key[1], key[0]))
        for key, naive in list(self.naive.items()):
            naive.intervals[-1].end_ns = self.now_ns
            rising = naive.surge(self.now_ns)
            averages = [naive.average(half_life_s, self.now_ns) for half_life_s in (1.5, 15.0)]
            wants = max([*averages, *([surge_rate(rising)] if naive.intervals[-1].short else [])])
            wants += 2 * waiting.get(key, 0)
            used = naive.average(15.0, self.now_ns, settled=True)
            row = rows.get(key)
            if row is None:
                assert key not in held
                assert max(wants, used) < 1.0 + 1e-6
                del self.naive[key]
                continue
            assert key in held or max(wants, used) > 1.0 - 1e-6
            assert row.wants_milli_mu_per_minute == pytest.approx(wants, rel=1e-9, abs=0.51)
            assert row.used_milli_mu_per_minute == pytest.approx(used, rel=1e-9, abs=0.51)
            assert row.held_milli_mu == held.get(key, 0)
            naive.reported, naive.rising = row.wants_milli_mu_per_minute, rising
            naive.intervals.append(Interval(begin_ns=self.now_ns))
        assert rows.keys() <= self.naive.keys()
        self.reported_ns = self.now_ns
        self.notable = False

    @invariant()
    def notable_agrees(self) -> None:
        assert self.demand.notable == self.notable
        assert self.woken == self.notable_ever


DemandMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestDemand = DemandMachine.TestCase

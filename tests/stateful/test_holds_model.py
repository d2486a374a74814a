"""The token buckets against a naive model: conservation, one end per hold, and the promise about any window."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from data_plane.router.core.holds import BucketKey, Hold, Holds, LeaseTerms, Refusal, Refused

SECOND = 1_000_000_000
KEYS: tuple[BucketKey, ...] = (("a", "m"), ("b", "m"), ("c", "m"))
# Two tables, the first with two leases.
SHARDS = {KEYS[0]: 0, KEYS[1]: 0, KEYS[2]: 1}
MINUTE = 60 * SECOND

amounts = st.integers(0, 40_000)
terms = st.builds(LeaseTerms, st.integers(0, 90_000), st.integers(0, 45_000), st.integers(0, 30_000))


class NaiveBucket:
    """What the documentation says, in exact fractions and without any cleverness."""

    def __init__(self, lease: LeaseTerms) -> None:
        self.lease: LeaseTerms | None = lease
        self.level = Fraction(lease.burst_milli_mu)
        self.held = 0
        self.settled = 0
        self.started = Fraction(lease.burst_milli_mu)
        self.flowed_in = Fraction(0)
        self.lost = Fraction(0)

    def add(self, amount: Fraction) -> None:
        cap = Fraction(self.lease.burst_milli_mu if self.lease else 0)
        after = max(self.level, min(self.level + amount, cap))
        self.lost += self.level + amount - after
        self.level = after

    def flow(self, amount: Fraction) -> None:
        self.flowed_in += amount
        self.add(amount)


def copied(holds: Holds) -> Holds:
    """The same buckets, to see what comes of them. By hand: compiled classes cannot be copied."""
    made = Holds()
    for number, shard in holds._shards.items():
        tables = made._shards[number] = type(shard)()
        tables.expires_ns = shard.expires_ns
        for key, bucket in shard.buckets.items():
            twin = tables.buckets[key] = made._buckets[key] = type(bucket)(tables, LeaseTerms(0, 0, 0), 0)
            twin.grant(bucket.terms)
            for name in ("absent_since_ns", "at_ns", "held", "level", "open_holds", "settled"):
                setattr(twin, name, getattr(bucket, name))
    return made


class HoldsMachine(RuleBasedStateMachine):
    """Random traffic, lease changes, renewals and expiries over three buckets in two tables."""

    open_holds: Bundle[tuple[BucketKey, Hold]] = Bundle("open_holds")

    def __init__(self) -> None:
        super().__init__()
        self.holds = Holds()
        self.naive: dict[BucketKey, NaiveBucket] = {}
        self.now_ns = 0
        self.expires_ns = {0: 0, 1: 0}
        self.admitted: dict[BucketKey, list[tuple[int, int]]] = {key: [] for key in KEYS}

    @initialize(first=terms, second=terms, third=terms, seconds=st.integers(0, 30))
    def start(self, first: LeaseTerms, second: LeaseTerms, third: LeaseTerms, seconds: int) -> None:
        self.apply(0, {KEYS[0]: first, KEYS[1]: second}, seconds)
        self.apply(1, {KEYS[2]: third}, seconds)

    def apply(self, shard: int, leases: dict[BucketKey, LeaseTerms], seconds: int) -> None:
        expires_ns = self.expires_ns[shard] = self.now_ns + seconds * SECOND
        self.holds.apply(leases, expires_ns=expires_ns, now_ns=self.now_ns, shard_number=shard)
        for key, bucket in self.naive.items():
            if SHARDS[key] == shard:
                bucket.lease = leases.get(key)
        for key, lease in leases.items():
            known = self.naive.get(key)
            if known is None:
                self.naive[key] = NaiveBucket(lease)
            else:
                known.lost += max(Fraction(0), known.level - lease.burst_milli_mu)
                known.level = min(known.level, Fraction(lease.burst_milli_mu))

    @rule(key=st.sampled_from(KEYS), lease=terms, others=st.booleans(), seconds=st.integers(-5, 30))
    def new_table(self, key: BucketKey, lease: LeaseTerms, others: bool, seconds: int) -> None:
        leases, shard = {key: lease}, SHARDS[key]
        if others:
            known = {each: naive.lease for each, naive in self.naive.items() if SHARDS[each] == shard}
            leases = {each: terms for each, terms in known.items() if terms is not None} | leases
        self.apply(shard, leases, seconds)

    @rule(shard=st.sampled_from([0, 1]), seconds=st.integers(-5, 30))
    def renew(self, shard: int, seconds: int) -> None:
        """What has run meanwhile at the safe rate stays so; from now on the lease runs, if it does."""
        expires_ns = self.now_ns + seconds * SECOND
        self.holds.renew(shard, expires_ns=expires_ns, now_ns=self.now_ns)
        self.expires_ns[shard] = max(self.expires_ns[shard], expires_ns)

    @rule(nanoseconds=st.integers(0, 20 * SECOND))
    def wait(self, nanoseconds: int) -> None:
        after = self.now_ns + nanoseconds
        for key, bucket in self.naive.items():
            if bucket.lease is not None:
                leased = max(0, min(after, self.expires_ns[SHARDS[key]]) - self.now_ns)
                rate, safe = bucket.lease.rate_milli_mu_per_minute, bucket.lease.safe_rate_milli_mu_per_minute
                bucket.flow(Fraction(rate * leased + safe * (nanoseconds - leased), MINUTE))
        self.now_ns = after

    @rule(target=open_holds, key=st.sampled_from(KEYS), amount=amounts, reserve_share=st.sampled_from([0.0, 0.2]))
    def hold(self, key: BucketKey, amount: int, reserve_share: float) -> Any:
        naive = self.naive[key]
        answer = self.holds.hold(key, amount, self.now_ns, reserve_share=reserve_share)
        burst = naive.lease.burst_milli_mu if naive.lease else 0
        needed = min(burst, amount + int(burst * reserve_share))
        if isinstance(answer, Hold):
            assert naive.lease is not None
            assert amount <= burst
            assert naive.level >= needed
            naive.level -= amount
            naive.held += amount
            self.admitted[key].append((self.now_ns, amount))
            return key, answer
        if naive.lease is None or (burst == 0 and amount):
            assert answer.refusal is Refusal.NO_LEASE
        elif amount > burst:
            assert answer == Refused(Refusal.TOO_SMALL, None)
        else:
            assert naive.level < needed
            held_back = naive.level + naive.held >= needed
            assert answer.refusal is (Refusal.HELD if held_back else Refusal.USED_UP)
            self._check_retry(key, amount, reserve_share, answer.retry_after_s)
        return None

    def _check_retry(self, key: BucketKey, amount: int, reserve_share: float, retry_after_s: float | None) -> None:
        """Waiting so long lets the same request in if nothing else happens; a nanosecond less does not."""
        lease, leased = self.naive[key].lease, self.now_ns < self.expires_ns[SHARDS[key]]
        assert lease is not None
        rate = lease.rate_milli_mu_per_minute if leased else lease.safe_rate_milli_mu_per_minute
        assert (retry_after_s is None) == (rate == 0)
        if retry_after_s is None:
            return
        there_ns = self.now_ns + round(retry_after_s * SECOND)
        for at_ns, admitted in ((there_ns - 1, False), (there_ns, True)):
            future = copied(self.holds)
            if leased:
                future.renew(SHARDS[key], expires_ns=there_ns + 1, now_ns=self.now_ns)
            assert isinstance(future.hold(key, amount, at_ns, reserve_share=reserve_share), Hold) == admitted

    @rule(held=open_holds, more=amounts)
    def extend(self, held: tuple[BucketKey, Hold] | None, more: int) -> None:
        if held is None or not held[1].open:
            return
        self.holds.extend(held[1], more, self.now_ns)
        self.naive[held[0]].level -= more
        self.naive[held[0]].held += more

    @rule(held=consumes(open_holds), cost=amounts)
    def settle(self, held: tuple[BucketKey, Hold] | None, cost: int) -> None:
        if held is None:
            return
        key, hold = held
        naive, amount = self.naive[key], hold.amount_milli_mu
        self.holds.settle(hold, cost, self.now_ns)
        naive.held -= amount
        naive.settled += cost
        if amount >= cost:
            naive.add(Fraction(amount - cost))
        else:
            naive.level -= cost - amount
        try:
            self.holds.refund(hold, self.now_ns)
        except RuntimeError:
            return
        raise AssertionError("a hold ended twice")

    @invariant()
    def books_agree(self) -> None:
        for key, naive in self.naive.items():
            view = self.holds.view(key, self.now_ns)
            level = naive.level if naive.lease else min(Fraction(0), naive.level)
            assert view.level_milli_mu == level.numerator // level.denominator
            assert (view.held_milli_mu, view.settled_milli_mu) == (naive.held, naive.settled)
            assert naive.level + naive.held + naive.settled == naive.started + naive.flowed_in - naive.lost
        assert self.holds.settled_milli_mu == sum(naive.settled for naive in self.naive.values())
        assert sum(self.holds.held().values()) == sum(naive.held for naive in self.naive.values())


HoldsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHolds = HoldsMachine.TestCase

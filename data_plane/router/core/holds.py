"""Holds: the token buckets that turn a lease into admitted requests.

One bucket per (tenant, model). A lease gives it a rate and a burst; it refills at the rate, never above the burst. A
request *holds* its estimated cost out of the bucket, *extends* the hold while its stream outruns the estimate, and ends
exactly once: *settled* at its true cost or *refunded*. Nothing is truncated: an extension or a settlement may take the
level below zero, and the debt is worked off by the refill before anything else is admitted.

At every moment, for every bucket:

    level + held + settled = start + refilled - overflowed

so settled work in any window is at most rate x window + burst, apart from what estimates were short of, which the next
window pays. Example: 60,000 mMU/min and a burst of 30,000 admit 30,000 at once and then 1,000 per second.

Leases expire: from `expires_ns` on the bucket refills at its safe rate. They come in tables, one per shard of the
tenants, each replaced as a whole and renewed by itself. Time is monotonic nanoseconds and comes in as
an argument; the arithmetic is in whole (mMU x ns / min), so that no rounding adds up over a year of refills.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

NS_PER_MINUTE: Final = 60_000_000_000
_NS_PER_S: Final = 1_000_000_000

# A bucket whose lease was taken away is forgotten after this long; until then its level is kept, so that a lease that
# flickers does not bring a fresh burst each time.
_FORGET_AFTER_NS: Final = 10 * NS_PER_MINUTE

BucketKey = tuple[str, str]
"""(tenant id, model id)."""


class Refusal(enum.Enum):
    """Why a hold was refused."""

    USED_UP = "used_up"
    """Settled work has used the quota up."""
    HELD = "held"
    """The quota is there but held by requests in flight."""
    TOO_SMALL = "too_small"
    """The request costs more than the burst: it can never be admitted under this lease."""
    NO_LEASE = "no_lease"
    """Nothing is granted to this router for this tenant and model now."""


@dataclass(frozen=True)
class LeaseTerms:
    """One tenant's share of one model at this router.

    Attributes:
        rate_milli_mu_per_minute: Refill while the lease runs.
        burst_milli_mu: Most that can be saved up.
        safe_rate_milli_mu_per_minute: Refill after expiry.
        quota_milli_mu_per_minute: What it is a share of, over all routers; for explanations and weights.
    """

    rate_milli_mu_per_minute: int
    burst_milli_mu: int
    safe_rate_milli_mu_per_minute: int
    quota_milli_mu_per_minute: int = 0


@dataclass(frozen=True)
class Refused:
    """The answer to a hold that was not granted.

    Attributes:
        refusal: Why.
        retry_after_s: After this long, and not a nanosecond earlier, the same hold succeeds by the refill alone while
            the lease is renewed; None where time does not help. Where quota is held by requests in flight it is the
            latest: whatever one of them gives back brings it forward, and how much that is shows when it ends.
    """

    refusal: Refusal
    retry_after_s: float | None


class BucketView:
    """A bucket at one moment.

    Attributes:
        level_milli_mu: What could be held now; negative is debt.
        held_milli_mu: Held by requests in flight.
        settled_milli_mu: Settled since the start of the process.
        burst_milli_mu: The lease's burst; 0 without a lease.
        rate_milli_mu_per_minute: The refill in force; 0 without a lease.
        open_holds: Requests in flight.
        quota_milli_mu_per_minute: The quota over all routers; 0 without a lease.
        expired: The lease has run out, its safe rate is in force.
    """

    __slots__ = (
        "burst_milli_mu",
        "expired",
        "held_milli_mu",
        "level_milli_mu",
        "open_holds",
        "quota_milli_mu_per_minute",
        "rate_milli_mu_per_minute",
        "settled_milli_mu",
    )

    def __init__(
        self,
        level_milli_mu: int,
        held_milli_mu: int,
        settled_milli_mu: int,
        burst_milli_mu: int,
        rate_milli_mu_per_minute: int,
        open_holds: int,
        quota_milli_mu_per_minute: int = 0,
        expired: bool = False,
    ) -> None:
        self.level_milli_mu = level_milli_mu
        self.held_milli_mu = held_milli_mu
        self.settled_milli_mu = settled_milli_mu
        self.burst_milli_mu = burst_milli_mu
        self.rate_milli_mu_per_minute = rate_milli_mu_per_minute
        self.open_holds = open_holds
        self.quota_milli_mu_per_minute = quota_milli_mu_per_minute
        self.expired = expired


class Hold:
    """What one request in flight holds. Only `Holds` changes it."""

    __slots__ = ("_bucket", "amount_milli_mu", "open")

    def __init__(self, bucket: _Bucket, amount_milli_mu: int) -> None:
        self._bucket = bucket
        self.amount_milli_mu = amount_milli_mu
        self.open = True


class _Shard:
    """The buckets of one lease table, and when their leases end."""

    __slots__ = ("buckets", "expires_ns")

    def __init__(self) -> None:
        self.expires_ns = 0
        self.buckets: dict[BucketKey, _Bucket] = {}

    def refill(self, now_ns: int) -> None:
        for bucket in self.buckets.values():
            bucket.refill(now_ns)


class _Bucket:
    __slots__ = ("absent_since_ns", "at_ns", "cap", "held", "level", "open_holds", "settled", "shard", "terms")

    def __init__(self, shard: _Shard, terms: LeaseTerms, now_ns: int) -> None:
        self.shard = shard
        self.grant(terms)
        self.level = self.cap
        self.at_ns = now_ns
        self.held = 0
        self.settled = 0
        self.open_holds = 0
        self.absent_since_ns = 0

    def grant(self, terms: LeaseTerms | None) -> None:
        self.terms = terms
        # Most the level is filled up to, in its own unit.
        self.cap = terms.burst_milli_mu * NS_PER_MINUTE if terms else 0

    def refill(self, now_ns: int) -> None:
        elapsed_ns = now_ns - self.at_ns
        if elapsed_ns <= 0:
            return
        terms = self.terms
        if terms is not None:
            expires_ns = self.shard.expires_ns
            if now_ns <= expires_ns:
                flowed = terms.rate_milli_mu_per_minute * elapsed_ns
            else:
                leased_ns = max(0, expires_ns - self.at_ns)
                safe_ns = elapsed_ns - leased_ns
                flowed = terms.rate_milli_mu_per_minute * leased_ns + terms.safe_rate_milli_mu_per_minute * safe_ns
            level = self.level
            if level < self.cap:
                level += flowed
                self.level = level if level < self.cap else self.cap
        self.at_ns = now_ns

    def fill(self, scaled: int) -> None:
        """Adds 0 or more, up to the cap, as `refill` does. A level above it can only be left from a lease that was
        taken away; it is not topped up."""
        if self.level < self.cap:
            level = self.level + scaled
            self.level = level if level < self.cap else self.cap


class Holds:
    """All buckets of one router."""

    def __init__(self) -> None:
        self._buckets: dict[BucketKey, _Bucket] = {}
        self._shards: dict[int, _Shard] = {}
        self._settled_total = 0
        self._open_total = 0

    @property
    def settled_milli_mu(self) -> int:
        """Settled over all buckets since the start, those forgotten included."""
        return self._settled_total

    @property
    def open_holds(self) -> int:
        """Requests in flight over all buckets."""
        return self._open_total

    def apply(
        self,
        leases: Mapping[BucketKey, LeaseTerms],
        *,
        expires_ns: int,
        now_ns: int,
        shard_number: int = 0,
        spent: bool = False,
    ) -> None:
        """Puts a lease table into force.

        A key seen for the first time starts with a full burst, unless it may be spent already. A known one keeps its
        level, capped at the new burst. A key of the shard that is missing admits nothing more until it comes back.

        Args:
            leases: The whole table.
            expires_ns: When its leases end. A time in the past puts the safe rates into force at once.
            now_ns: Monotonic now.
            shard_number: Which table it replaces.
            spent: The leases were an earlier process's: what it saved up is taken to be spent.
        """
        shard = self._shards.get(shard_number)
        if shard is None:
            shard = self._shards[shard_number] = _Shard()
        shard.refill(now_ns)
        for key, bucket in list(shard.buckets.items()):
            if key in leases:
                continue
            if bucket.terms is not None:
                bucket.grant(None)
                bucket.absent_since_ns = now_ns
            elif not bucket.open_holds and now_ns - bucket.absent_since_ns > _FORGET_AFTER_NS:
                del self._buckets[key], shard.buckets[key]
        shard.expires_ns = expires_ns
        for key, terms in leases.items():
            known = self._buckets.get(key)
            if known is None:
                known = self._buckets[key] = _Bucket(shard, terms, now_ns)
                if spent:
                    known.level = 0
            elif known.shard is not shard:
                known.refill(now_ns)
                del known.shard.buckets[key]
                known.shard = shard
            known.grant(terms)
            known.level = min(known.level, known.cap)
            shard.buckets[key] = known

    def renew(self, shard_number: int, *, expires_ns: int, now_ns: int) -> None:
        """Lets the leases of a table run on.

        Args:
            shard_number: Which table.
            expires_ns: When its leases end now; never earlier than before.
            now_ns: Monotonic now.
        """
        shard = self._shards[shard_number]
        if now_ns > shard.expires_ns:
            # There was a gap, and it is paid at the safe rates.
            shard.refill(now_ns)
        shard.expires_ns = max(shard.expires_ns, expires_ns)

    def hold(self, key: BucketKey, amount_milli_mu: int, now_ns: int, *, reserve_share: float = 0.0) -> Hold | Refused:
        """Takes the estimated cost of a request out of its bucket.

        Args:
            key: Whose.
            amount_milli_mu: Estimate, 0 or more.
            now_ns: Monotonic now.
            reserve_share: Share of the burst that must be left afterwards (batch leaves some to interactive), 0 to 1;
                a request that could never leave it is admitted from a full bucket.

        Returns:
            The hold, to be ended by exactly one `settle` or `refund`; or why not.
        """
        bucket = self._buckets.get(key)
        if bucket is None or bucket.terms is None:
            return Refused(Refusal.NO_LEASE, None)
        burst = bucket.terms.burst_milli_mu
        if amount_milli_mu > burst:
            return Refused(Refusal.TOO_SMALL if burst else Refusal.NO_LEASE, None)
        bucket.refill(now_ns)
        needed = amount_milli_mu
        if reserve_share:
            needed = min(burst, needed + int(burst * reserve_share))
        if bucket.level < needed * NS_PER_MINUTE:
            return self._refused(bucket, bucket.terms, needed, now_ns)
        bucket.level -= amount_milli_mu * NS_PER_MINUTE
        bucket.held += amount_milli_mu
        bucket.open_holds += 1
        self._open_total += 1
        return Hold(bucket, amount_milli_mu)

    def extend(self, hold: Hold, more_milli_mu: int, now_ns: int) -> None:
        """Holds more for a stream that outran its estimate; never refused, may leave a debt.

        Args:
            hold: An open hold.
            more_milli_mu: 0 or more.
            now_ns: Monotonic now.
        """
        if not hold.open:
            raise _ended_twice()
        bucket = hold._bucket
        bucket.refill(now_ns)
        bucket.level -= more_milli_mu * NS_PER_MINUTE
        bucket.held += more_milli_mu
        hold.amount_milli_mu += more_milli_mu

    def settle(self, hold: Hold, cost_milli_mu: int, now_ns: int) -> None:
        """Ends a hold at its true cost: the rest goes back, what was short becomes debt.

        Args:
            hold: An open hold; closed afterwards.
            cost_milli_mu: True cost, 0 or more.
            now_ns: Monotonic now.
        """
        if not hold.open:
            raise _ended_twice()
        hold.open = False
        bucket = hold._bucket
        bucket.refill(now_ns)
        bucket.held -= hold.amount_milli_mu
        bucket.open_holds -= 1
        bucket.settled += cost_milli_mu
        self._open_total -= 1
        self._settled_total += cost_milli_mu
        rest = hold.amount_milli_mu - cost_milli_mu
        if rest < 0:
            bucket.level += rest * NS_PER_MINUTE
        else:
            bucket.fill(rest * NS_PER_MINUTE)

    def refund(self, hold: Hold, now_ns: int) -> None:
        """Ends a hold for which no work was delivered."""
        self.settle(hold, 0, now_ns)

    def view(self, key: BucketKey, now_ns: int) -> BucketView:
        """A bucket now; all zero for one that has no lease and no history."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return BucketView(0, 0, 0, 0, 0, 0)
        if now_ns > bucket.at_ns:
            bucket.refill(now_ns)
        terms, level = bucket.terms, bucket.level // NS_PER_MINUTE
        if terms is None:
            return BucketView(min(0, level), bucket.held, bucket.settled, 0, 0, bucket.open_holds)
        expired = now_ns >= bucket.shard.expires_ns
        return BucketView(
            level,
            bucket.held,
            bucket.settled,
            terms.burst_milli_mu,
            terms.safe_rate_milli_mu_per_minute if expired else terms.rate_milli_mu_per_minute,
            bucket.open_holds,
            terms.quota_milli_mu_per_minute,
            expired,
        )

    def held(self) -> dict[BucketKey, int]:
        """What requests in flight hold, by bucket; buckets without any are left out."""
        return {key: bucket.held for key, bucket in self._buckets.items() if bucket.open_holds}

    def rates(self, now_ns: int) -> dict[BucketKey, int]:
        """The refill in force, mMU per minute by bucket; buckets without a lease are left out."""
        return {key: self._rate(bucket, bucket.terms, now_ns) for key, bucket in self._buckets.items() if bucket.terms}

    @staticmethod
    def _rate(bucket: _Bucket, terms: LeaseTerms, now_ns: int) -> int:
        leased = now_ns < bucket.shard.expires_ns
        return terms.rate_milli_mu_per_minute if leased else terms.safe_rate_milli_mu_per_minute

    def _refused(self, bucket: _Bucket, terms: LeaseTerms, needed: int, now_ns: int) -> Refused:
        missing = needed * NS_PER_MINUTE - bucket.level
        held_back = bucket.level + bucket.held * NS_PER_MINUTE >= needed * NS_PER_MINUTE
        refusal = Refusal.HELD if held_back else Refusal.USED_UP
        # The rate in force now: a running lease is renewed long before it ends, an expired one stays at its safe rate.
        rate = self._rate(bucket, terms, now_ns)
        return Refused(refusal, -(-missing // rate) / _NS_PER_S if rate > 0 else None)


def _ended_twice() -> RuntimeError:
    return RuntimeError("a hold ends exactly once")

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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a hold that was not granted.

    Attributes:
        refusal: Why.
        retry_after_s: After this long the same hold succeeds if nothing else happens; None where time does not help.
    """

    refusal: Refusal
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
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

    level_milli_mu: int
    held_milli_mu: int
    settled_milli_mu: int
    burst_milli_mu: int
    rate_milli_mu_per_minute: int
    open_holds: int
    quota_milli_mu_per_minute: int = 0
    expired: bool = False


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
    __slots__ = ("absent_since_ns", "at_ns", "held", "level", "open_holds", "settled", "shard", "terms")

    def __init__(self, shard: _Shard, terms: LeaseTerms, now_ns: int) -> None:
        self.shard = shard
        self.terms: LeaseTerms | None = terms
        self.level = terms.burst_milli_mu * NS_PER_MINUTE
        self.at_ns = now_ns
        self.held = 0
        self.settled = 0
        self.open_holds = 0
        self.absent_since_ns = 0

    def refill(self, now_ns: int) -> None:
        if now_ns <= self.at_ns:
            return
        if self.terms is not None:
            leased_ns = max(0, min(now_ns, self.shard.expires_ns) - self.at_ns)
            safe_ns = now_ns - self.at_ns - leased_ns
            flowed = (
                self.terms.rate_milli_mu_per_minute * leased_ns + self.terms.safe_rate_milli_mu_per_minute * safe_ns
            )
            self.add(flowed)
        self.at_ns = now_ns

    def add(self, scaled: int) -> None:
        cap = (self.terms.burst_milli_mu if self.terms else 0) * NS_PER_MINUTE
        # A level above the cap can only be left from a lease that was taken away; it is not topped up.
        self.level = max(self.level, min(self.level + scaled, cap)) if scaled >= 0 else self.level + scaled


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
        self, leases: Mapping[BucketKey, LeaseTerms], *, expires_ns: int, now_ns: int, shard_number: int = 0
    ) -> None:
        """Puts a lease table into force.

        A key seen for the first time starts with a full burst. A known one keeps its level, capped at the new burst. A
        key of the shard that is missing admits nothing more until it comes back.

        Args:
            leases: The whole table.
            expires_ns: When its leases end. A time in the past puts the safe rates into force at once.
            now_ns: Monotonic now.
            shard_number: Which table it replaces.
        """
        shard = self._shards.get(shard_number)
        if shard is None:
            shard = self._shards[shard_number] = _Shard()
        shard.refill(now_ns)
        for key, bucket in list(shard.buckets.items()):
            if key in leases:
                continue
            if bucket.terms is not None:
                bucket.terms, bucket.absent_since_ns = None, now_ns
            elif not bucket.open_holds and now_ns - bucket.absent_since_ns > _FORGET_AFTER_NS:
                del self._buckets[key], shard.buckets[key]
        shard.expires_ns = expires_ns
        for key, terms in leases.items():
            known = self._buckets.get(key)
            if known is None:
                known = self._buckets[key] = _Bucket(shard, terms, now_ns)
            elif known.shard is not shard:
                known.refill(now_ns)
                del known.shard.buckets[key]
                known.shard = shard
            known.terms = terms
            known.level = min(known.level, terms.burst_milli_mu * NS_PER_MINUTE)
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
        terms = bucket.terms
        if amount_milli_mu > terms.burst_milli_mu:
            return Refused(Refusal.NO_LEASE if not terms.burst_milli_mu else Refusal.TOO_SMALL, None)
        bucket.refill(now_ns)
        needed = min(terms.burst_milli_mu, amount_milli_mu + int(terms.burst_milli_mu * reserve_share))
        if bucket.level < needed * NS_PER_MINUTE:
            return self._refused(bucket, terms, needed, now_ns)
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
        bucket = self._open(hold)
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
        bucket = self._open(hold)
        hold.open = False
        bucket.refill(now_ns)
        bucket.held -= hold.amount_milli_mu
        bucket.open_holds -= 1
        bucket.settled += cost_milli_mu
        self._open_total -= 1
        self._settled_total += cost_milli_mu
        bucket.add((hold.amount_milli_mu - cost_milli_mu) * NS_PER_MINUTE)

    def refund(self, hold: Hold, now_ns: int) -> None:
        """Ends a hold for which no work was delivered."""
        self.settle(hold, 0, now_ns)

    def view(self, key: BucketKey, now_ns: int) -> BucketView:
        """A bucket now; all zero for one that has no lease and no history."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return BucketView(0, 0, 0, 0, 0, 0)
        bucket.refill(now_ns)
        terms = bucket.terms
        level = bucket.level // NS_PER_MINUTE
        return BucketView(
            level_milli_mu=level if terms else min(0, level),
            held_milli_mu=bucket.held,
            settled_milli_mu=bucket.settled,
            burst_milli_mu=terms.burst_milli_mu if terms else 0,
            rate_milli_mu_per_minute=self._rate(bucket, terms, now_ns) if terms else 0,
            open_holds=bucket.open_holds,
            quota_milli_mu_per_minute=terms.quota_milli_mu_per_minute if terms else 0,
            expired=terms is not None and now_ns >= bucket.shard.expires_ns,
        )

    def held(self) -> dict[BucketKey, int]:
        """What requests in flight hold, by bucket; buckets without any are left out."""
        return {key: bucket.held for key, bucket in self._buckets.items() if bucket.open_holds}

    def rates(self, now_ns: int) -> dict[BucketKey, int]:
        """The refill in force, mMU per minute by bucket; buckets without a lease are left out."""
        return {
            key: self._rate(bucket, bucket.terms, now_ns) for key, bucket in self._buckets.items() if bucket.terms
        }

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

    @staticmethod
    def _open(hold: Hold) -> _Bucket:
        if not hold.open:
            raise RuntimeError("a hold ends exactly once")
        return hold._bucket

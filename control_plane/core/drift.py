"""From what replicas say about their speed to what is wrong: the profile, single replicas, or nothing.

Every agent compares the time its engine takes per output token with the time the profile in force says at that load; 1
means that the profile is true. Where most replicas agree that it is not, the profile drifts and one that would fit is
proposed; where a few disagree with it, they are slow. Both have to last before they count, and are over only when well
inside the tolerance, so that noise at its edge raises nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from control_plane.core.happenings import INFO, WARNING, Happening
from model_units.cost import CostProfile, Evidence

TOLERANCE_MIN: Final = 0.10
"""Software updates of an engine and mixes of traffic move the truth by some percent without anybody's fault."""

TOKENS_MIN: Final = 200
"""Output tokens a replica's ratio must stand for; below, a few slow tokens decide it."""

# A ratio beyond these is a fault of the measurement, not a speed.
_RATIO_MIN: Final = 0.01
_RATIO_MAX: Final = 100.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What one replica says.

    Attributes:
        replica_id: Which.
        ratio: Time it takes over time the profile says.
        tokens: Output tokens that ratio stands for.
    """

    replica_id: str
    ratio: float
    tokens: int

    @property
    def usable(self) -> bool:
        """Whether it says anything."""
        return self.tokens >= TOKENS_MIN and _RATIO_MIN <= self.ratio <= _RATIO_MAX


@dataclass(frozen=True, slots=True)
class Verdict:
    """One look at a model.

    Attributes:
        ratio: The fleet's, 1 when the profile is true; 0 where nothing is known yet.
        tolerance: Distance from 1 that counts.
        replicas: Replicas that said something usable.
        replicas_drifting: Those beyond the tolerance.
        drifting: Whether the profile itself drifts.
        proposal: A profile that would fit; None while there is no drift.
        happenings: What began or ended with this look.
    """

    ratio: float
    tolerance: float
    replicas: int
    replicas_drifting: int
    drifting: bool
    proposal: CostProfile | None
    happenings: tuple[Happening, ...]


def tolerance_of(profile: CostProfile) -> float:
    """Distance from 1 that counts as drift: never less than the profile admits to not knowing."""
    evidence = profile.evidence or Evidence()
    return max(TOLERANCE_MIN, 2.0 * evidence.latency_spread, evidence.stated_error)


def median_ratio(readings: Sequence[Reading]) -> float:
    """The ratio that half of the tokens are not above; 0 for none."""
    half = sum(reading.tokens for reading in readings) / 2.0
    below = 0
    for reading in sorted(readings, key=lambda each: each.ratio):
        below += reading.tokens
        if below >= half:
            return reading.ratio
    return 0.0


def scaled(profile: CostProfile, ratio: float) -> CostProfile | None:
    """The profile with every cost and its latency curve times `ratio`.

    An engine that takes `ratio` times as long for everything costs that much more of a replica per request, and shows
    that much longer a time per token while as many sequences run, whose costs are as much larger: both axes grow alike.

    Args:
        profile: The one in force.
        ratio: Above 0.

    Returns:
        The next version, its number not reserved yet; None where a cost would leave its range.
    """
    version = profile.version + 1
    try:
        return replace(
            profile,
            profile_id=f"{profile.model}/{profile.hardware}/{version}",
            version=version,
            **{name: getattr(profile, name) * ratio for name in ("a", "b", "d", "g", "image_s")},
            provenance=f"{profile.profile_id} times {ratio:.3f}, as production measured it; not calibrated",
            create_time="",
            evidence=_scaled_evidence(profile.evidence, ratio),
        )
    except ValueError:
        return None


def _scaled_evidence(evidence: Evidence | None, ratio: float) -> Evidence | None:
    if evidence is None:
        return None
    return replace(
        evidence,
        intervals={name: (low * ratio, high * ratio) for name, (low, high) in evidence.intervals.items()},
        latency_curve=tuple((load_ms * ratio, tpot_ms * ratio) for load_ms, tpot_ms in evidence.latency_curve),
    )


class ModelDrift:
    """The watch over one model while one profile is in force.

    Args:
        model_id: The model.
        profile: The profile in force.
        start_s: How long a drift must last before it counts, seconds.
        drifting: Whether the profile was found to drift already, by a leader before.
        ratio: The fleet's ratio that leader saw last.
        slow: Replicas already reported to be slow.
    """

    def __init__(
        self,
        model_id: str,
        profile: CostProfile,
        *,
        start_s: float,
        drifting: bool = False,
        ratio: float = 0.0,
        slow: Iterable[str] = (),
    ) -> None:
        self._model_id = model_id
        self.profile = profile
        self._start_s = start_s
        self._tolerance = tolerance_of(profile)
        self._ratio = ratio
        self._drifting = drifting
        self._since_s = math.inf
        self._slow = set(slow)
        self._slow_since_s: dict[str, float] = {}

    def look(self, readings: Iterable[Reading], now_s: float) -> Verdict:
        """Takes what the replicas say now.

        Args:
            readings: Of every replica that knows its ratio to this very profile; those that say too little are ignored.
            now_s: Monotonic seconds, never less than before.
        """
        usable = [reading for reading in readings if reading.usable]
        happenings = []
        if usable:
            self._ratio = median_ratio(usable)
        agreed = self._agreed(usable)
        self._since_s = min(self._since_s, now_s) if agreed else math.inf
        if not self._drifting and now_s - self._since_s >= self._start_s:
            self._drifting = True
            happenings.append(self._began(len(usable)))
        elif self._drifting and usable and abs(self._ratio - 1.0) < self._tolerance / 2.0:
            self._drifting = False
            happenings.append(self._ended(len(usable)))
        happenings += self._slow_ones(usable, agreed, now_s)
        return Verdict(
            ratio=self._ratio,
            tolerance=self._tolerance,
            replicas=len(usable),
            replicas_drifting=sum(self._beyond(reading.ratio) for reading in usable),
            drifting=self._drifting,
            proposal=scaled(self.profile, self._ratio) if self._drifting else None,
            happenings=tuple(happenings),
        )

    def _beyond(self, ratio: float) -> bool:
        return abs(ratio - 1.0) > self._tolerance

    def _agreed(self, usable: Sequence[Reading]) -> bool:
        """Whether the replicas say that the profile is wrong: their median, and at least half of them on its side."""
        if not usable or not self._beyond(self._ratio):
            return False
        allies = sum(self._beyond(each.ratio) and (each.ratio > 1.0) is (self._ratio > 1.0) for each in usable)
        return 2 * allies >= len(usable)

    def _slow_ones(self, usable: Sequence[Reading], agreed: bool, now_s: float) -> list[Happening]:
        """Replicas that are slower than the others, and have been for long enough."""
        reference = self._ratio if self._drifting else 1.0
        excess = {each.replica_id: each.ratio / reference - 1.0 for each in usable}
        # Only who says something clears its name: a slow replica may get no traffic for a while.
        self._slow -= {name for name, over in excess.items() if over < self._tolerance / 2.0}
        late = {name for name, over in excess.items() if over > self._tolerance and name not in self._slow}
        if agreed and not self._drifting:
            # Most are slow: it will be the profile's drift, not theirs.
            late = set()
        self._slow_since_s = {name: self._slow_since_s.get(name, now_s) for name in late}
        proven = sorted(name for name in late if now_s - self._slow_since_s[name] >= self._start_s)
        self._slow.update(proven)
        return [self._slow_replica(name, 1.0 + excess[name], len(usable)) for name in proven]

    def _facts(self, ratio: float, replicas: int) -> dict[str, str]:
        return {
            "profile_id": self.profile.profile_id,
            "ratio": f"{ratio:.3f}",
            "tolerance": f"{self._tolerance:.3f}",
            "replicas": str(replicas),
        }

    def _began(self, replicas: int) -> Happening:
        way = "longer" if self._ratio > 1.0 else "less time"
        alone = " Only one replica says so: it may be that replica." if replicas == 1 else ""
        return Happening(
            "PROFILE_DRIFT",
            WARNING,
            self._model_id,
            f"Tokens take {abs(self._ratio - 1.0):.0%} {way} than profile {self.profile.profile_id} says.{alone} "
            "Accept the proposed profile, or calibrate the model again.",
            self._facts(self._ratio, replicas),
        )

    def _ended(self, replicas: int) -> Happening:
        return Happening(
            "DRIFT_ENDED",
            INFO,
            self._model_id,
            f"Profile {self.profile.profile_id} is true again; nothing is to be done.",
            self._facts(self._ratio, replicas),
        )

    def _slow_replica(self, replica_id: str, ratio: float, replicas: int) -> Happening:
        return Happening(
            "REPLICA_SLOW",
            WARNING,
            self._model_id,
            f"Replica {replica_id} takes {ratio - 1.0:.0%} longer per token than the others. Look at its machine, or "
            "drain it.",
            self._facts(ratio, replicas) | {"replica_id": replica_id},
        )

"""The time of a simulated replica: real time, less the time in which it stood still."""

from __future__ import annotations

from collections.abc import Callable


class Pace:
    """A clock that can be stopped. It begins at 0 and runs.

    Example: 3 s after it was made it says 3. Stopped then and let go 10 s later, it says 3 still, and one second later
    it says 4.

    Args:
        real_s: Monotonic seconds.
    """

    def __init__(self, real_s: Callable[[], float]) -> None:
        self._real_s = real_s
        self._zero_s = real_s()
        self._stopped_s: float | None = None

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._stopped_s is None

    @property
    def now_s(self) -> float:
        """The replica's time, seconds."""
        return self._real_s() - self._zero_s if self._stopped_s is None else self._stopped_s

    def real_at(self, time_s: float) -> float:
        """The real time at which the replica's time is `time_s`, as long as nothing stops it."""
        return self._zero_s + time_s

    def stop(self) -> None:
        """Stops it; a stopped one stays."""
        self._stopped_s = self.now_s

    def go(self) -> None:
        """Lets it run on from where it stands."""
        self.set_back(self.now_s)
        self._stopped_s = None

    def set_back(self, time_s: float) -> None:
        """Makes it say `time_s` now: what has passed since then never was."""
        self._zero_s = self._real_s() - time_s

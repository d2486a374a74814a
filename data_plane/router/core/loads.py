"""What the router knows of each replica's load: the last report plus its own dispatches since.

Reports five seconds old cost the routing signal only 4 % *if the router adds its own dispatches at once*; without that,
every router sends its next ten requests to the replica that was idle a second ago.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from data_plane.router.core.pick import Candidate, Health, hash64

_NS_PER_MS: Final = 1_000_000

# A dispatch younger than this may have been on the wire when the replica measured: it stays counted on top of the
# report. Too long only double-counts briefly; too short loses it until the next report.
DISPATCH_UNSEEN_NS: Final = 20 * _NS_PER_MS


@dataclass(frozen=True, slots=True)
class Report:
    """A replica's own measurement.

    Attributes:
        sequence: Grows with every report of one replica process.
        pending_prefill_milli_mu: Prefill that waits or runs.
        decode_milli_mu: Decode left of running requests.
    """

    sequence: int
    pending_prefill_milli_mu: int
    decode_milli_mu: int


class Dispatch:
    """One request sent to one replica, until it ends."""

    __slots__ = ("decode_milli_mu", "id", "load", "prefill_milli_mu", "sent_ns")

    def __init__(self, load: ReplicaLoad, id_: int, prefill_milli_mu: int, decode_milli_mu: int, sent_ns: int) -> None:
        self.load = load
        self.id = id_
        self.prefill_milli_mu = prefill_milli_mu
        self.decode_milli_mu = decode_milli_mu
        self.sent_ns = sent_ns


class ReplicaLoad(Candidate):
    """One replica's load as this router knows it: reported, plus that of dispatches since. A candidate for `pick`.

    Attributes:
        in_flight: This router's requests on it.
    """

    __slots__ = (
        "_next_id",
        "_report",
        "_unseen",
        "_unseen_decode",
        "_unseen_prefill",
        "in_flight",
    )

    def __init__(self, replica_id: str) -> None:
        super().__init__(replica_id, hash64(replica_id), Health.CLOSED, 0, 0, 0)
        self.in_flight = 0
        self._report = Report(0, 0, 0)
        self._unseen: dict[int, Dispatch] = {}
        self._unseen_prefill = 0
        self._unseen_decode = 0
        self._next_id = 0

    def dispatch(self, prefill_milli_mu: int, decode_milli_mu: int, now_ns: int) -> Dispatch:
        """Counts a request that is being sent to this replica."""
        self._next_id += 1
        dispatch = Dispatch(self, self._next_id, prefill_milli_mu, decode_milli_mu, now_ns)
        self._unseen[dispatch.id] = dispatch
        self._unseen_prefill += prefill_milli_mu
        self._unseen_decode += decode_milli_mu
        self.in_flight += 1
        self._sum()
        return dispatch

    def started(self, dispatch: Dispatch) -> None:
        """The first token came: its prefill is done."""
        if dispatch.id in self._unseen:
            self._unseen_prefill -= dispatch.prefill_milli_mu
            dispatch.prefill_milli_mu = 0
            self._sum()

    def ended(self, dispatch: Dispatch) -> None:
        """The request left the replica, whatever became of it."""
        self.in_flight -= 1
        self._forget(dispatch.id)
        self._sum()

    def report(self, report: Report, now_ns: int) -> bool:
        """Takes a replica's report, which includes what had reached it by then.

        Args:
            report: The report.
            now_ns: When it arrived.

        Returns:
            Whether it was newer than the last one.
        """
        if report.sequence <= self._report.sequence:
            return False
        self._report = report
        for id_ in [id_ for id_, sent in self._unseen.items() if now_ns - sent.sent_ns >= DISPATCH_UNSEEN_NS]:
            self._forget(id_)
        self._sum()
        return True

    def _sum(self) -> None:
        report = self._report
        self.carry(report.pending_prefill_milli_mu + self._unseen_prefill, report.decode_milli_mu + self._unseen_decode)

    def _forget(self, id_: int) -> None:
        dispatch = self._unseen.pop(id_, None)
        if dispatch is not None:
            self._unseen_prefill -= dispatch.prefill_milli_mu
            self._unseen_decode -= dispatch.decode_milli_mu

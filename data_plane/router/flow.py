"""Runs requests: the same life for all front doors, with everything it is written into."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from common.clock import Clock
from data_plane.router.admission import Admission
from data_plane.router.attempts import Attempts
from data_plane.router.books import Books
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.validate import is_request_id
from data_plane.router.deadlines import Deadlines
from data_plane.router.exchange import Call, Receipt
from data_plane.router.life import Exchange
from data_plane.router.tracing import Tracing
from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2 as pb

_ID_CHARACTERS: Final = 24
_IDS_DRAWN: Final = 512
"""At a time: asking the system for each costs as much as all the rest of a short request."""


class Flow:
    """See the module.

    Args:
        admission: Checks, prices and holds.
        attempts: Picks replicas and relays.
        books: Where everything is written down.
        tracing: Of this process.
        clock: Monotonic time.
    """

    def __init__(
        self, *, admission: Admission, attempts: Attempts, books: Books, tracing: Tracing, clock: Clock
    ) -> None:
        self.admission = admission
        self.attempts = attempts
        self.books = books
        self.tracing = tracing
        self.clock = clock
        self._deadlines = Deadlines(clock)
        self._drawn, self._used = "", 0

    def open(self, call: Call) -> Exchange:
        """Prepares a request; nothing happens before it is started."""
        return Exchange(
            call,
            self.receipt(call.request),
            admission=self.admission,
            attempts=self.attempts,
            books=self.books,
            tracing=self.tracing,
            deadlines=self._deadlines,
        )

    def refuse(self, error: FairleadError, authorization: str | None) -> Receipt:
        """Counts a request that could not even be read: received, and refused.

        Args:
            error: What is wrong with it.
            authorization: The authorization header's value, or None: whoever holds the key may ask about it.

        Returns:
            What there is to know of it.
        """
        now_ns = self.clock.monotonic_ns()
        receipt = Receipt(self._drawn_id(), now_ns, self.clock.wall_ns())
        with contextlib.suppress(FairleadError):
            receipt.tenant_id = self.admission.authenticate(authorization).tenant_id
        receipt.end(Outcome.REFUSED, error.reason.value, now_ns, error)
        self.books.accounts.received += 1
        self.books.accounts.finish("", "", Outcome.REFUSED, error.reason.value)
        self.books.decisions.remember(receipt)
        return receipt

    def receipt(self, request: pb.GenerateRequest) -> Receipt:
        """A receipt under the request's name: its client's, or one that is drawn. An id that will be refused is not
        repeated."""
        named = request.request_id
        return Receipt(named if named and is_request_id(named) else self._drawn_id())

    def _drawn_id(self) -> str:
        begin = self._used
        end = self._used = begin + _ID_CHARACTERS
        if end > len(self._drawn):
            self._drawn = os.urandom(_IDS_DRAWN * _ID_CHARACTERS // 2).hex()
            begin, end = 0, _ID_CHARACTERS
            self._used = end
        return self._drawn[begin:end]

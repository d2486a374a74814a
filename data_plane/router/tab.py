"""The tab of one request: what it holds, what it gets and what it pays."""

from __future__ import annotations

from typing import Final

from common.clock import NS_PER_S
from data_plane.router.admission import Order
from data_plane.router.books import Books
from data_plane.router.core import pricing
from data_plane.router.core.holds import Hold
from data_plane.router.core.usage import Counts
from data_plane.router.exchange import Charge, Finished, Receipt, Usage
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.length import next_covered_tokens

_TOLD_EVERY_TOKENS: Final = 32

_CANCELLED: Final = pb.FINISH_REASON_CANCELLED


class Tab:
    """What one admitted request holds, gets and pays. Its hold ends in exactly one settlement.

    Args:
        books: Where everything is written down.
        order: The request.
        receipt: Learns what was delivered and charged.

    Attributes:
        hold: What is held; None while nothing is.
    """

    def __init__(self, books: Books, order: Order, receipt: Receipt) -> None:
        self.hold: Hold | None = None
        self._books = books
        self._order = order
        self._receipt = receipt
        self._account = books.accounts.of(order.bucket)
        self._covered_tokens = 0
        self._first_token_ns = self._told_tokens = 0

    def open(self, hold: Hold) -> None:
        """The estimate was taken out of the tenant's quota."""
        self.hold = hold
        self._covered_tokens = self._order.price.output_tokens

    def begin(self, first_token_ns: int) -> None:
        """The client got its first token; `deliver` says so where nobody has.

        Args:
            first_token_ns: Monotonic time of it.
        """
        self._first_token_ns = first_token_ns
        first_s = (first_token_ns - self._receipt.arrive_ns) / NS_PER_S
        self._books.accounts.first_token(self._receipt.model_id, first_s)

    def deliver(self, tokens: int) -> None:
        """The client gets more of the answer.

        Args:
            tokens: How many; 0 for text of tokens that were counted before.
        """
        receipt = self._receipt
        if not self._first_token_ns:
            self.begin(self._books.now_ns())
        receipt.output_tokens = delivered = receipt.output_tokens + tokens
        if delivered >= self._told_tokens + _TOLD_EVERY_TOKENS:
            self._tell()
        if delivered > self._covered_tokens:
            self._extend()

    def _tell(self) -> None:
        """Counts what was delivered: not every token by itself, which would cost as much as all the rest here."""
        delivered = self._receipt.output_tokens
        self._account.output_tokens += delivered - self._told_tokens
        self._told_tokens = delivered

    def _extend(self) -> None:
        """Holds more for a stream that outran its estimate."""
        assert self.hold is not None
        order, books = self._order, self._books
        self._covered_tokens = next_covered_tokens(self._receipt.output_tokens, order.checked.max_tokens)
        covered = pricing.settled(order.profile, order.price.input_tokens, self._covered_tokens, 0)
        more = covered.total_milli_mu - self.hold.amount_milli_mu
        if more > 0:
            now_ns = books.now_ns()
            books.holds.extend(self.hold, more, now_ns)
            self._receipt.held_milli_mu += more
            books.demand.wanted(order.bucket, more, now_ns)

    def give_back(self) -> None:
        """The request was not begun, and waits to be admitted anew."""
        assert self.hold is not None
        now_ns = self._books.now_ns()
        self._books.holds.refund(self.hold, now_ns)
        self.hold = None
        self._receipt.gave_back(self._books.holds.view(self._order.bucket, now_ns))

    def finish(
        self, finish_reason: pb.FinishReason.ValueType, counted: pb.Usage, ended_ns: int | None = None
    ) -> Finished:
        """The answer is whole: it is charged by the engine's own counts.

        Args:
            finish_reason: Why it ended.
            counted: By the engine.
            ended_ns: Monotonic time of its end; None for now.
        """
        order, books, now_ns = self._order, self._books, self._books.now_ns()
        said_input, said_output = counted.input_tokens, counted.output_tokens
        input_tokens = said_input or order.price.input_tokens
        cached_input_tokens, output_tokens = counted.cached_input_tokens, self._receipt.output_tokens
        if said_output > output_tokens:
            output_tokens = said_output
        usage = Usage(input_tokens, cached_input_tokens, output_tokens)
        self._tell()
        cost = self._settle(usage, now_ns)
        self._account.input_tokens += input_tokens
        if output_tokens > 1 and self._first_token_ns:
            gap_s = ((ended_ns or now_ns) - self._first_token_ns) / NS_PER_S / (output_tokens - 1)
            books.accounts.token_time(order.bucket[1], gap_s)
        if finish_reason != _CANCELLED:
            self._learn(said_input, said_output)
        return Finished(finish_reason, usage, cost)

    def close(self) -> None:
        """Ends the hold of a request that did not end by itself: what the client got is charged, the rest goes back."""
        if self.hold is None or not self.hold.open:
            return
        self._tell()
        now_ns = self._books.now_ns()
        if self._receipt.output_tokens:
            self._settle(Usage(self._order.price.input_tokens, 0, self._receipt.output_tokens), now_ns)
        else:
            self._books.holds.refund(self.hold, now_ns)
            self._receipt.quota = self._books.holds.view(self._order.bucket, now_ns)

    def _learn(self, input_tokens: int, output_tokens: int) -> None:
        order = self._order
        self._books.pricing.observe(
            order.profile,
            tenant_id=order.tenant_id,
            model_id=order.bucket[1],
            prompt_bytes=order.checked.prompt_bytes,
            messages=order.checked.messages,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            runs_to_max=order.checked.runs_to_max,
            bytes_per_token_start=order.model.bytes_per_token,
        )

    def _settle(self, usage: Usage, now_ns: int) -> Charge:
        assert self.hold is not None
        books, order, receipt = self._books, self._order, self._receipt
        bucket, holds = order.bucket, books.holds
        input_tokens, cached_input_tokens = usage.input_tokens, usage.cached_input_tokens
        output_tokens = usage.output_tokens
        cost = pricing.settled(order.profile, input_tokens, output_tokens, cached_input_tokens)
        prefill, decode, total = cost
        holds.settle(self.hold, total, now_ns)
        books.demand.used(bucket, total, now_ns)
        self._account.settled_milli_mu += total
        books.settled(bucket[1], total, now_ns)
        receipt.usage = usage
        receipt.cost = cost
        counts = Counts(1, input_tokens, cached_input_tokens, output_tokens, prefill, decode)
        books.usage.settled(bucket, counts, now_ns)
        receipt.quota = holds.view(bucket, now_ns)
        return Charge(receipt.estimated_milli_mu, total, prefill, decode, receipt.quota_left_milli_mu)

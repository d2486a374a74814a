"""A request's life ends once, whoever ends it and in the middle of whatever step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from data_plane.router.core.accounts import Outcome
from data_plane.router.exchange import Call, Finished
from data_plane.router.life import Exchange
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, Reason
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import KEY, MODEL, TENANT, RouterLab, Script, prompt_request
from tests.support.waiting import eventually


class OneMessage:
    """Replicas that say all in one message; see PulledUpstream."""

    async def generate(
        self,
        replica: engine_pb2.Replica,
        request: engine_pb2.EngineGenerateRequest,
        *,
        deadline_ns: int,
        metadata: Sequence[tuple[str, str]],
    ) -> AsyncGenerator[engine_pb2.EngineGenerateResponse, None]:
        """See PulledUpstream."""
        yield engine_pb2.EngineGenerateResponse(
            text="all",
            output_tokens=2,
            finish_reason=pb.FINISH_REASON_STOP,
            usage=pb.Usage(input_tokens=7, output_tokens=2),
        )


class Broken:
    """A replica's last message, at which something of our own breaks."""

    finish_reason = pb.FINISH_REASON_STOP
    text = ""
    output_tokens = 0

    def HasField(self, name: str) -> bool:
        return False

    @property
    def usage(self) -> pb.Usage:
        raise ZeroDivisionError


class OneBroken:
    """Replicas whose first answer is `Broken`; see PulledUpstream."""

    def __init__(self) -> None:
        self.answers = iter([Broken()])

    async def generate(self, *_: object, **__: object) -> AsyncGenerator[Any, None]:
        """See PulledUpstream."""
        broken = next(self.answers, None)
        if broken is not None:
            yield broken
        yield engine_pb2.EngineGenerateResponse(
            finish_reason=pb.FINISH_REASON_STOP, usage=pb.Usage(input_tokens=7, output_tokens=1)
        )


class Noted:
    """A front door that writes down what it is told, and does something at every piece."""

    def __init__(self, at_piece: Callable[[], Any] = lambda: None) -> None:
        self.at_piece = at_piece
        self.pieces: list[bytes] = []
        self.finished: list[Finished] = []
        self.failures: list[FairleadError] = []

    def on_piece(self, piece: bytes) -> bool:
        self.pieces.append(piece)
        self.at_piece()
        return True

    def on_finished(self, finished: Finished) -> None:
        self.finished.append(finished)

    def on_failed(self, error: FairleadError) -> None:
        self.failures.append(error)


def opened(lab: RouterLab, request: pb.GenerateRequest | None = None, deadline_ns: int | None = None) -> Exchange:
    return lab.router.flow.open(Call(request or prompt_request(), f"Bearer {KEY}", deadline_ns))


def settled_once(lab: RouterLab, exchange: Exchange, outcome: Outcome) -> None:
    """It ended so, its hold was settled, and no replica counts it any more."""
    assert exchange.receipt.outcome is outcome
    assert [(ended, n) for (_, _, ended, _), n in lab.router.accounts.finished.items()] == [(outcome, 1)]
    view = lab.router.holds.view((TENANT, MODEL), lab.clock.monotonic_ns())
    assert (view.open_holds, view.held_milli_mu) == (0, 0)
    assert lab.router.holds.settled_milli_mu == exchange.receipt.settled_milli_mu
    assert all(member.load.in_flight == 0 for member in lab.router.fleet)
    assert lab.received_equals_finished()


@pytest.mark.parametrize("whole", [True, False])
async def test_a_client_that_leaves_with_a_piece_is_told_nothing_more(whole: bool) -> None:
    """Even if that piece came with the end of the answer: what was delivered is charged, once."""
    lab = RouterLab(("r1",), upstream=OneMessage() if whole else None)
    exchange = opened(lab)
    front = Noted(exchange.cancel)
    exchange.start(front)
    await asyncio.wait_for(exchange.ended(), 10)
    await asyncio.sleep(0.01)
    assert (len(front.pieces), front.finished, front.failures) == (1, [], [])
    settled_once(lab, exchange, Outcome.CANCELLED)
    assert exchange.receipt.settled_milli_mu > 0
    assert exchange.receipt.tries[-1].failure_reason == Reason.CANCELLED.value


async def test_cancelling_is_settled_before_it_returns() -> None:
    """Nothing has to be waited for: not with a replica that is silent, nor afterwards, nor twice."""
    lab = RouterLab(("r1",))
    lab.upstream.scripts["r1"] = Script(gate=asyncio.Event())
    exchange = opened(lab)
    front = Noted()
    exchange.start(front)
    await eventually(lambda: lab.upstream.running == 1)
    exchange.cancel()
    settled_once(lab, exchange, Outcome.CANCELLED)
    exchange.cancel()
    await asyncio.wait_for(exchange.ended(), 10)
    settled_once(lab, exchange, Outcome.CANCELLED)
    assert (front.pieces, front.finished, front.failures) == ([], [], [])
    assert exchange.receipt.settled_milli_mu == 0


async def test_a_refusal_is_told_before_start_returns() -> None:
    """Nothing it waits for, so nobody waits."""
    lab = RouterLab(("r1",), burst=1)
    exchange = opened(lab)
    front = Noted()
    exchange.start(front)
    assert [error.reason for error in front.failures] == [Reason.QUOTA_TOO_SMALL]
    settled_once(lab, exchange, Outcome.REFUSED)


async def test_a_deadline_ends_what_runs_and_says_why() -> None:
    """On the replica, in the receipt and at the client."""
    lab = RouterLab(("r1",))
    lab.upstream.scripts["r1"] = Script(gate=asyncio.Event())
    exchange = opened(lab, deadline_ns=lab.clock.monotonic_ns() + 200_000_000)
    front = Noted()
    exchange.start(front)
    await eventually(lambda: front.failures)
    assert front.failures[0].reason is Reason.DEADLINE_EXCEEDED
    assert exchange.receipt.tries[-1].failure_reason == Reason.DEADLINE_EXCEEDED.value
    settled_once(lab, exchange, Outcome.FAILED)
    await eventually(lambda: lab.upstream.cancelled == ["r1"])


async def test_a_fault_of_our_own_ends_the_request_and_nothing_else() -> None:
    """Raised in the middle of a replica's message: the request fails, its hold is given back, the next one runs."""
    lab = RouterLab(("r1",), upstream=OneBroken())
    exchange = opened(lab)
    front = Noted()
    exchange.start(front)
    await eventually(lambda: front.failures)
    assert front.failures[0].reason is Reason.INTERNAL
    settled_once(lab, exchange, Outcome.FAILED)
    another = opened(lab)
    front = Noted()
    another.start(front)
    await eventually(lambda: front.finished)
    assert all(member.load.in_flight == 0 for member in lab.router.fleet)
    assert lab.received_equals_finished()

"""One request at a time at the flow of a router."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from data_plane.router.exchange import Call, Delta, Finished
from data_plane.router.life import Exchange
from fairlead.errors import (
    FairleadError,
    Reason,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import KEY, RouterLab, prompt_request

LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)


def call(request: pb.GenerateRequest | None = None, *, key: str | None = KEY) -> Call:
    return Call(request or prompt_request(), f"Bearer {key}" if key else None)


async def collect(exchange: Exchange) -> tuple[str, Finished]:
    texts, finished = [], None
    async with aclosing(exchange.events()) as events:
        async for event in events:
            assert finished is None
            if isinstance(event, Delta):
                texts.append(event.text)
            else:
                finished = event
    assert finished is not None
    return "".join(texts), finished


async def run(lab: RouterLab, request: pb.GenerateRequest | None = None) -> tuple[str, Finished, Exchange]:
    exchange = lab.router.flow.open(call(request))
    text, finished = await collect(exchange)
    return text, finished, exchange


async def refused(lab: RouterLab, request: pb.GenerateRequest | None = None, *, key: str | None = KEY) -> FairleadError:
    exchange = lab.router.flow.open(call(request, key=key))
    with pytest.raises(FairleadError) as caught:
        await collect(exchange)
    return caught.value


def outcomes(lab: RouterLab) -> dict[tuple[str, str], int]:
    return {(outcome.value, reason): n for (_, _, outcome, reason), n in lab.router.accounts.finished.items()}

"""Calls that have brought their last message: those that do not end by themselves are given up."""

from __future__ import annotations

import asyncio

from data_plane.relay.grpc.client_end import ClientCall
from data_plane.router.upstream_relay import Endings
from fairlead.errors import FairleadError
from tests.support.waiting import eventually

ENDING_S = 0.05


class _Nobody:
    def on_message(self, framed: bytes) -> None:
        """See Reply."""

    def on_end(self, failure: FairleadError | None) -> None:
        """See Reply."""


def _call() -> ClientCall:
    return ClientCall(b"", b"", _Nobody())


async def test_a_call_that_does_not_end_is_given_up_and_one_that_has_is_left_alone() -> None:
    endings, ended, first, second = Endings(ENDING_S), _call(), _call(), _call()
    now_s = asyncio.get_running_loop().time
    for call in (ended, first):
        endings.expect(call)
    endings.ended(ended)
    await asyncio.sleep(ENDING_S / 2)
    second_s = now_s()
    endings.expect(second)
    await eventually(lambda: first.reply is None)
    await eventually(lambda: second.reply is None)
    assert now_s() - second_s >= ENDING_S * 0.9
    assert ended.reply is not None


async def test_the_next_one_is_given_up_as_well() -> None:
    """Proves that a timer that found nothing left is set again."""
    endings = Endings(ENDING_S)
    for _ in range(2):
        call = _call()
        endings.expect(call)
        await eventually(lambda call=call: call.reply is None)  # type: ignore[misc]
    last = _call()
    endings.expect(last)
    endings.ended(last)
    await asyncio.sleep(2 * ENDING_S)
    assert last.reply is not None

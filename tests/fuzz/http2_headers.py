"""Header blocks under any bytes."""

from __future__ import annotations

from hpack import Decoder

from data_plane.relay.http2.frames import ConnectionFaultError
from data_plane.relay.http2.header_blocks import TABLE_BYTES_MAX, HeaderDecoder, TooLargeError
from tests.fuzz.chances import Chances
from tests.fuzz.http2_targets import LIMITS, LINES_PER_BYTE, LINES_START
from tests.fuzz.work import Work


def headers(data: bytes) -> None:
    """Header blocks, one after the other: what is understood is what the `hpack` package understands."""
    chances = Chances(data)
    ours, reference = HeaderDecoder(LIMITS.header_list_bytes_max), Decoder(1 << 30)
    reference.max_allowed_table_size = TABLE_BYTES_MAX
    came = 0
    with Work() as work:
        while chances.left:
            choice = chances.byte()
            block = chances.take(choice & 0x3F)
            # The same block again means the same again.
            for _ in range(2 if choice & 0x40 else 1):
                came += 1 + len(block)
                try:
                    fields = ours.decode(block)
                except TooLargeError:
                    reference.decode(block, raw=True)
                    continue
                except ConnectionFaultError:
                    _check_work(work, came)
                    return
                assert [tuple(field) for field in reference.decode(block, raw=True)] == list(fields.pairs)
                assert ours._table_bytes == sum(len(n) + len(v) + 32 for n, v in ours._table) <= TABLE_BYTES_MAX
    _check_work(work, came)


def _check_work(work: Work, came: int) -> None:
    assert work.lines <= LINES_START + LINES_PER_BYTE * came, (work.lines, came)

"""Which prompts begin alike: ids of a prompt's leading pieces, for the step machine's prefix cache."""

from __future__ import annotations

import hashlib
from typing import Final

_ID_BYTES: Final = 8


def prefix_ids(prompt: bytes, piece_bytes: int) -> tuple[int, ...]:
    """Names every whole piece of a prompt by a hash of the piece and everything before it.

    So equal ids mean equal prompts up to there: two prompts that differ in their first byte share no id. An
    accidental match takes about 2^32 pieces in one cache, more than the memory of any replica holds.

    Args:
        prompt: The rendered prompt.
        piece_bytes: Size of a piece, bytes, 1 or more; what is left over at the end is named by nothing.

    Returns:
        The ids, front first.
    """
    so_far = hashlib.blake2b(digest_size=_ID_BYTES)
    ids = []
    for end in range(piece_bytes, len(prompt) + 1, piece_bytes):
        so_far.update(prompt[end - piece_bytes : end])
        ids.append(int.from_bytes(so_far.digest()))
    return tuple(ids)

"""Names of a prompt's leading blocks: what routers and replica agents call the prefixes that engines keep.

A prompt is read as bytes, cut into blocks of 1,024 from the front; a block's name is a 64-bit hash of itself and all
before it. So two prompts have as many names in common as they have whole blocks in common from the front, and a name
says which prefix is meant without saying what is in it. An unfinished block at the end has no name.

Names are the same in every process and version of Fairlead: a router's and an agent's must mean the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

from fairlead.inference.v1 import inference_pb2

PREFIX_BLOCK_BYTES: Final = 1024
"""Length of a block. Some 250 tokens: short enough to find most of a common prefix, long enough that a long prompt has
hundreds of names and not tens of thousands."""

PREFIX_BLOCKS_MAX: Final = 1024
"""Most blocks that are named, a megabyte of prompt. Source: `EngineGenerateRequest.prefix_blocks`."""

TURN_BYTES_MAX: Final = 16
"""Most bytes that a turn of a conversation has beyond its content: the role and what ends both."""

_NAME_BYTES: Final = 8
# No character of a role or of an ordinary text, so that where one ends is part of the prefix.
_END_OF_ROLE: Final = b"\x1f"
_END_OF_TURN: Final = b"\x1e"


def prefix_blocks(chunks: Iterable[bytes]) -> tuple[int, ...]:
    """Names of the leading blocks of a prompt.

    Args:
        chunks: Its bytes, in pieces of any length.

    Returns:
        0 to 1,024 names below 2^64, front first.
    """
    prompt = b"".join(chunks)
    if len(prompt) < PREFIX_BLOCK_BYTES:
        return ()
    # The fastest hash of the standard library where processors have instructions for it, as nearly all do.
    chain = hashlib.sha256(usedforsecurity=False)
    names = []
    for end in range(
        PREFIX_BLOCK_BYTES, min(len(prompt), PREFIX_BLOCKS_MAX * PREFIX_BLOCK_BYTES) + 1, PREFIX_BLOCK_BYTES
    ):
        chain.update(prompt[end - PREFIX_BLOCK_BYTES : end])
        names.append(int.from_bytes(chain.digest()[:_NAME_BYTES], "big"))
    return tuple(names)


def prompt_chunks(request: inference_pb2.GenerateRequest) -> Iterator[bytes]:
    """A request's prompt as bytes: its text, or its conversation turn by turn.

    A conversation that goes on keeps its prefix.

    Args:
        request: Of a client, checked or not.
    """
    if request.WhichOneof("input") != "chat":
        yield request.prompt.encode("utf-8", "surrogatepass")
        return
    for turn in request.chat.messages:
        yield turn.role.encode("utf-8", "surrogatepass") + _END_OF_ROLE
        yield turn.content.encode("utf-8", "surrogatepass") + _END_OF_TURN

"""What the core asks its driver to do, one step at a time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from fairlead.sdk.results import Generation, Piece
from fairlead.sdk.transport import Outgoing, StreamResponse, UnaryResponse

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Send:
    """Send a unary try; reply with its answer or throw its error."""

    outgoing: Outgoing


@dataclass(frozen=True, slots=True)
class Open:
    """Open a streaming try, dropping an earlier one; no reply."""

    outgoing: Outgoing


@dataclass(frozen=True, slots=True)
class Read:
    """Read the open stream; reply with the message, None at its end, or throw its error."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep; no reply."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand a piece to the caller and come back for the next; no reply."""

    piece: Piece


UnarySteps = Generator[Send | Wait, UnaryResponse | None, Result]
StreamStep = Send | Open | Read | Wait | Deliver
StreamSteps = Generator[StreamStep, StreamResponse | UnaryResponse | None, Generation]

"""Tells what a file of load is by its columns, whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from engines.simulated.kernel_points import POINT_COLUMNS
from fairlead.errors import InvalidArgumentError
from fairlead.replay.files import open_lines
from simulation.traces.image_quantiles import QUANTILE_COLUMNS
from simulation.traces.lengths_only import LENGTH_PAIR_COLUMNS
from simulation.traces.rate_curve import CURVE_COLUMNS
from simulation.traces.servegen import RATE_COLUMNS
from simulation.traces.servegen_lengths import LENGTH_COLUMNS


class Kind(StrEnum):
    """What a file holds."""

    REQUESTS = "recorded requests"
    PREFIXED_REQUESTS = "recorded requests with prefixes"
    CLIENT_RATES = "rates per client and window"
    CLIENT_LENGTHS = "length quantiles per client and window"
    LENGTHS = "lengths without times"
    RATE_CURVE = "rate curves of services"
    QUANTILES = "quantiles per kind of request"
    STEP_TIMES = "step times of engines"


# In this order: recorded requests have the columns of lengths too.
_COLUMNS: Final = (
    (Kind.REQUESTS, ("t_s", "input_tokens", "output_tokens")),
    (Kind.LENGTHS, LENGTH_PAIR_COLUMNS),
    (Kind.CLIENT_RATES, RATE_COLUMNS),
    (Kind.CLIENT_LENGTHS, LENGTH_COLUMNS),
    (Kind.RATE_CURVE, CURVE_COLUMNS),
    (Kind.QUANTILES, QUANTILE_COLUMNS),
    (Kind.STEP_TIMES, POINT_COLUMNS),
)
_RATES, _LENGTHS = "_rates", "_lengths"


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a folder.

    Attributes:
        path: Where it is.
        kind: What it holds.
    """

    path: Path
    kind: Kind


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of a folder that is no load.

    Attributes:
        path: Where it is.
        reason: Why: it is nothing known, or cannot be read.
    """

    path: Path
    reason: str


def recognise(path: Path | str) -> Kind:
    """What a file holds, by its first line.

    Raises:
        InvalidArgumentError: It cannot be read, or is nothing known; the message lists the columns looked for.
    """
    kind = _kind(path)
    if kind is not None:
        return kind
    known = "; ".join(f"{kind}: {','.join(needed)}" for kind, needed in _COLUMNS)
    raise InvalidArgumentError(
        f"{Path(path).name} is no load that is known here ({known}; or JSON Lines)", field="trace"
    )


def recognise_folder(folder: Path | str) -> tuple[Found, ...]:
    """What a folder holds, by name; `left_out` tells of files that are nothing known (a README) or cannot be read.

    Raises:
        InvalidArgumentError: It is no folder, or may not be listed.
    """
    return tuple(each for each in _looked_at(Path(folder)) if isinstance(each, Found))


def left_out(folder: Path | str) -> tuple[LeftOut, ...]:
    """The files of a folder that `recognise_folder` leaves out, by name, and why; errors as there."""
    return tuple(each for each in _looked_at(Path(folder)) if isinstance(each, LeftOut))


def _looked_at(folder: Path) -> Iterator[Found | LeftOut]:
    try:
        paths = sorted(folder.iterdir())
    except NotADirectoryError:
        raise InvalidArgumentError(f"{folder} is no folder", field="trace") from None
    except OSError as error:
        raise InvalidArgumentError(f"cannot list the folder {folder}: {error.strerror}", field="trace") from None
    for path in paths:
        if not path.is_file() and not path.is_symlink():  # a folder, a pipe; a link may lead nowhere, which is said
            continue
        try:
            kind = _kind(path)
        except InvalidArgumentError as error:
            yield LeftOut(path, error.message)
        else:
            yield LeftOut(path, "no load that is known here") if kind is None else Found(path, kind)


def _kind(path: Path | str) -> Kind | None:
    with open_lines(path) as lines:
        first = next(iter(lines), "").strip()
    if first.startswith("{"):
        return Kind.PREFIXED_REQUESTS if '"hash_ids"' in first else Kind.REQUESTS
    columns = {column.strip() for column in first.split(",")}
    return next((kind for kind, needed in _COLUMNS if columns.issuperset(needed)), None)


def partner_of(path: Path, kind: Kind) -> Path:
    """The other file of a pair of rates and lengths: the same name with the other word, else the same beginning.

    Raises:
        InvalidArgumentError: There is none beside it.
    """
    ours, theirs = (_RATES, _LENGTHS) if kind is Kind.CLIENT_RATES else (_LENGTHS, _RATES)
    wanted = Kind.CLIENT_LENGTHS if kind is Kind.CLIENT_RATES else Kind.CLIENT_RATES
    prefix, found, rest = path.name.partition(ours)
    if found:
        exact = path.with_name(prefix + theirs + rest)
        for candidate in (exact, *sorted(path.parent.glob(f"{prefix}{theirs}*"))):
            if candidate.is_file() and recognise(candidate) is wanted:
                return candidate
    raise InvalidArgumentError(
        f"{path.name} holds {kind}, which go with {wanted}: put that file beside it as {prefix}{theirs}{rest}",
        field="trace",
    )

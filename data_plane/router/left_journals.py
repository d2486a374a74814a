"""The usage journals of processes that have ended: found, locked, read as far as they can be, removed once stored."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.logs import get_logger
from data_plane.router.core.usage import UsageBook
from data_plane.router.usage_records import Header, contents_of, header_of, segments, settlement_of

FOLDER: Final = "usage"
"""Of all journals, within a router's state_dir."""

_DAMAGED: Final = ".damaged"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of which something cannot be read.

    Attributes:
        path: The file.
        lost_bytes: How much of it.
    """

    path: Path
    lost_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a journal held.

    Attributes:
        header: Whose it is; None where no file says so.
        book: All its settlements, in the tables in which its process counted them.
        damaged: Files in which something could not be read.
    """

    header: Header | None
    book: UsageBook
    damaged: tuple[Damage, ...]


class Left:
    """The journal of a process that has ended, locked so that nobody else takes it over meanwhile.

    Attributes:
        folder: Where it is.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    def read(self) -> Found:
        """Reads it: whatever is readable counts.

        Raises:
            OSError: The disk does not give it.
        """
        found: Header | None = None
        book = UsageBook()
        damaged: list[Damage] = []
        for _, path in segments(self.folder):
            contents, lost_bytes = contents_of(path.read_bytes())
            header = header_of(contents[0]) if contents else None
            if header is not None:
                found = header
                if header.base:
                    book = UsageBook()
            if lost_bytes:
                damaged.append(Damage(path, lost_bytes))
            for content in contents if header is None else contents[1:]:
                read = settlement_of(content)
                book.add(read.hour, read.payer, read.counts, 0, read.number)
        return Found(found, book, tuple(damaged))

    def remove(self, found: Found) -> None:
        """Removes it once it is stored elsewhere; damaged files stay, and are not read again. Never raises.

        Args:
            found: What was read.
        """
        with contextlib.suppress(OSError):
            for damage in found.damaged:
                damage.path.rename(damage.path.with_name(damage.path.name + _DAMAGED))
            if not any(self.folder.glob("*" + _DAMAGED)):
                remove(self.folder)
                return
            for path in self.folder.iterdir():
                if path.suffix != _DAMAGED:
                    path.unlink()

    def release(self) -> None:
        """Leaves it to others."""
        os.close(self._lock)


def left_journals(state_dir: Path) -> Iterator[Left]:
    """Journals in a router's folder whose processes have ended; what else lies there is passed over.

    Args:
        state_dir: The router's folder.

    Yields:
        Each, locked; to be released.
    """
    try:
        entries = sorted((state_dir / FOLDER).iterdir())
    except OSError:
        return
    for folder in entries:
        try:
            left = _left(folder)
        except OSError as error:
            log.error("journal of an earlier process cannot be opened", folder=str(folder), error=error.strerror)
            continue
        if left is not None:
            yield left


def _left(folder: Path) -> Left | None:
    """A dead process's journal, locked; None where there is none."""
    if not folder.is_dir() or _only_damaged(folder):
        return None
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        os.close(lock)
        raise
    return Left(folder, lock)


def _only_damaged(folder: Path) -> bool:
    """Whether everything in it was read as far as it can be, and is kept for people to look at."""
    names = [path.name for path in folder.iterdir()]
    return bool(names) and all(name.endswith(_DAMAGED) for name in names)


def remove(folder: Path) -> None:
    """Removes a journal for good. Never raises."""
    shutil.rmtree(folder, ignore_errors=True)

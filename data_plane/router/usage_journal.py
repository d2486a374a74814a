"""The usage journal: every settlement on disk before anything else can happen to it.

A process that is killed loses its memory, and with it what it settled since its last write to etcd. So every settlement
is also copied into a file that is mapped into memory: no system call, and what was copied stays in the kernel's cache
when the process dies at any instruction. (A machine that loses power may lose the seconds the kernel had not written.)

    state_dir/usage/INCARNATION/00000001.journal, 00000002.journal, ...

How a file reads is in `usage_records`, what becomes of a dead process's journal in `left_journals`.

Files have a fixed size whose blocks are allocated when they are made, so that a
full disk shows there and then, never as a signal in the middle of a request. Once there are several, their sums go into
one *base* file, which replaces everything with a lower number. The folder is locked as long as its process lives.

A journal that cannot be written fails no request: it is logged once, counted, and begun anew from a base once it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from common.logs import get_logger
from data_plane.router import usage_records
from data_plane.router.core.usage import Counts, Payer, Row, UsageBook
from data_plane.router.left_journals import FOLDER, remove
from data_plane.router.usage_records import HEAD, Header, path_of, segments

SEGMENT_BYTES: Final = 1 << 20
"""About 9,000 settlements: making a file costs tens of microseconds, so a thousandth of that per settlement."""

SEGMENTS_MAX: Final = 8
"""More files than this are summed up into a base. Bounds the journal, and the time to read it to a second."""


log = get_logger(__name__)


class UsageJournal:
    """Writes one process's journal.

    Args:
        state_dir: The router's folder.
        router_id: This router.
        incarnation_id: This process; names its folder.
        segment_bytes: Size of a file.

    Attributes:
        lost: Settlements that could not be written down, and files of earlier processes that were damaged.
    """

    def __init__(
        self, state_dir: Path, *, router_id: str, incarnation_id: str, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.folder = state_dir / FOLDER / incarnation_id
        self.lost = 0
        self._header = Header(router_id, incarnation_id, False)
        self._segment_bytes = segment_bytes
        self._lock: int | None = None
        self._map: mmap.mmap | None = None
        self._spare: tuple[int, mmap.mmap] | None = None
        self._at = 0
        self._number = 0
        self._names: dict[Payer, bytes] = {}
        self._gap = False
        self._failed = False
        try:
            self._lock_folder()
        except OSError as error:
            self._report(error)
        else:
            self._roll()

    @property
    def complete(self) -> bool:
        """Whether everything that was settled is written down."""
        return not self._gap and self._map is not None

    def append(self, hour: int, number: int, payer: Payer, counts: Counts) -> None:
        """Writes one settlement down. Never raises.

        Args:
            hour: In which it counts, since the Unix epoch.
            number: Of the table in which it counts.
            payer: Who pays for what.
            counts: Of it.
        """
        names = self._names.get(payer)
        if names is None:
            names = self._names[payer] = usage_records.names(payer)
        record = usage_records.settlement(hour, number, counts, names)
        end = self._at + len(record)
        if self._map is None or end > self._segment_bytes:
            self._roll()
            end = self._at + len(record)
        if self._map is None or end > self._segment_bytes:
            self.lost += 1
            self._gap = True
            return
        self._map[self._at : end] = record
        self._at = end

    async def tend(self, book: UsageBook) -> None:
        """Does what need not be done while a request waits: makes the next file, sums up many. Never raises.

        Args:
            book: Everything that was settled and may not be stored yet.
        """
        try:
            if not self.complete or len(segments(self.folder)) > SEGMENTS_MAX:
                await self._sum_up(book)
            if self._spare is None:
                self._number += 1
                self._spare = (self._number, await asyncio.to_thread(self._make, self._number))
        except OSError as error:
            self._report(error)

    def remove(self) -> None:
        """Removes the journal: everything in it is stored elsewhere, and nothing more will come. Never raises."""
        self.close()
        remove(self.folder)

    def close(self) -> None:
        """Lets go of the files, which stay where they are."""
        spare = self._spare[1] if self._spare is not None else None
        for mapped in (self._map, spare):
            if mapped is not None:
                mapped.close()
        self._map, self._spare = None, None
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    async def _sum_up(self, book: UsageBook) -> None:
        """Replaces all files so far by the sums in memory."""
        if self._lock is None or not self.folder.is_dir():
            self._lock_folder()
        self._number += 1
        number, rows = self._number, list(book.rows())
        # From here on, in the same step as the copy, settlements go to a later file.
        self._discard_spare()
        self._roll(retry=True)
        if self._map is None:
            return
        gap, self._gap = self._gap, False
        try:
            await asyncio.to_thread(self._write_base, number, rows)
        except OSError:
            self._gap = gap
            raise
        if self._failed:
            self._failed = False
            log.info("usage journal works again", folder=str(self.folder))

    def _write_base(self, number: int, rows: Iterable[tuple[int, Row]]) -> None:
        path = path_of(self.folder, number)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(usage_records.record(msgspec.json.encode(msgspec.structs.replace(self._header, base=True))))
            for table, row in rows:
                named = usage_records.names((row.tenant_id, row.model_id))
                file.write(usage_records.settlement(row.hour, table, row.counts, named))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        for old_number, old in segments(self.folder):
            if old_number < number:
                old.unlink()

    def _lock_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is not None:
            os.close(self._lock)
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _roll(self, *, retry: bool = False) -> None:
        """Goes on in the next file; without one where none can be made. After a failure only `retry` tries again."""
        if self._map is not None:
            self._map.close()
            self._map = None
        self._names.clear()
        try:
            if self._spare is not None:
                (_, self._map), self._spare = self._spare, None
            elif retry or not self._failed:
                self._number += 1
                self._map = self._make(self._number)
        except OSError as error:
            self._report(error)
            return
        if self._map is not None:
            self._at = HEAD.size + HEAD.unpack_from(self._map)[0]

    def _make(self, number: int) -> mmap.mmap:
        path = path_of(self.folder, number)
        header = usage_records.record(msgspec.json.encode(self._header))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                os.posix_fallocate(fd, 0, self._segment_bytes)
                mapped = mmap.mmap(fd, self._segment_bytes)
            except OSError:
                with contextlib.suppress(OSError):
                    path.unlink()
                raise
        finally:
            os.close(fd)
        mapped[: len(header)] = header
        return mapped

    def _discard_spare(self) -> None:
        if self._spare is not None:
            number, mapped = self._spare
            mapped.close()
            self._spare = None
            with contextlib.suppress(OSError):
                path_of(self.folder, number).unlink()

    def _report(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            log.error(
                "usage journal cannot be written; a crash would lose what is not in etcd yet",
                folder=str(self.folder),
                error=error.strerror,
            )

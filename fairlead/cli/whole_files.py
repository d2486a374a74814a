"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fairlead.errors import InvalidArgumentError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Opens a file that takes the place of `path` when everything was written, and vanishes otherwise.

    Args:
        path: Where it goes; a link is followed, what is no file is refused.

    Raises:
        InvalidArgumentError: It cannot be written there.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise InvalidArgumentError(f"{path} is no file: name one, or leave it out for standard output", field="file")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InvalidArgumentError(f"cannot write {path}: {error.strerror}", field="file") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise InvalidArgumentError(f"cannot write {path}: {error.strerror}", field="file") from None
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

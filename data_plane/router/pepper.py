"""The platform's pepper, from its file."""

from __future__ import annotations

from pathlib import Path

from data_plane.router.core.keys import PEPPER_BYTES_MIN
from fairlead.errors import InvalidArgumentError


def read_pepper(path: str) -> bytes:
    """Reads the platform's pepper.

    Raises:
        InvalidArgumentError: There is none, or it is too short.
    """
    if not path:
        raise InvalidArgumentError("key_pepper_file must name the file that the control plane uses too")
    try:
        pepper = Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"key_pepper_file {path}: {error.strerror}") from error
    if len(pepper) < PEPPER_BYTES_MIN:
        raise InvalidArgumentError(f"key_pepper_file {path} must hold at least {PEPPER_BYTES_MIN} random bytes")
    return pepper

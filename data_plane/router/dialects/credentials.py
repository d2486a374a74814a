"""What routers show to engines: secrets by name, each for one origin only.

A replica's record names the credentials its engine wants and never holds them. Whoever can write such a record could
name an address of his own, so every secret is bound here to where it may be sent.

    [openai]
    origin = "https://api.openai.com"
    key_file = "/run/secrets/openai"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from data_plane.relay.http1.client_calls import Origin
from fairlead.errors import InvalidArgumentError

_KEYS: Final = {"origin", "key_file"}
_PORTS: Final = {"http": 80, "https": 443}
_KEY_BYTES_MAX: Final = 4096


class Credentials:
    """Keys by name.

    Args:
        keys: Where each may be sent, and the key.
    """

    def __init__(self, keys: Mapping[str, tuple[Origin, str]] | None = None) -> None:
        self._keys = dict(keys or {})

    @classmethod
    def load(cls, file: Path) -> Credentials:
        """Reads the settings and the files they name.

        Args:
            file: TOML, a table per name as above.

        Raises:
            InvalidArgumentError: A table has other keys, or a file cannot be read; it is named.
        """
        try:
            tables = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidArgumentError(f"credentials cannot be read from {file}: {error}") from error
        return cls({name: _entry(name, table) for name, table in tables.items()})

    def authorization(self, name: str, origin: Origin) -> bytes:
        """The authorization header's value.

        Args:
            name: As in the replica's record.
            origin: Where it would be sent.

        Raises:
            InvalidArgumentError: There is no such key, or it belongs elsewhere.
        """
        found = self._keys.get(name)
        if found is None:
            raise InvalidArgumentError(f"this router has no credentials named {name!r}")
        bound, key = found
        if origin != bound:
            raise InvalidArgumentError(f"the credentials {name!r} are not for the host {origin.host!r}")
        return b"Bearer " + key.encode()


def origin_of(url: str) -> tuple[Origin, str]:
    """The origin of a URL, and its path without a slash at the end.

    Raises:
        InvalidArgumentError: It is no http or https URL of host, port and path.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidArgumentError(f"{url!r} is no URL") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise InvalidArgumentError(f"{url!r} must be http(s)://host[:port][/path]")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidArgumentError(f"{url!r} holds characters that no URL holds")
    return Origin(parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "https"), parts.path.rstrip("/")


def _entry(name: str, table: object) -> tuple[Origin, str]:
    if not isinstance(table, dict) or set(table) != _KEYS or not all(isinstance(each, str) for each in table.values()):
        raise InvalidArgumentError(f"credentials {name!r} must have {' and '.join(sorted(_KEYS))}, each a text")
    origin, path = origin_of(table["origin"])
    if path:
        raise InvalidArgumentError(f"the origin of credentials {name!r} must have no path")
    try:
        key = Path(table["key_file"]).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"the key of credentials {name!r} cannot be read: {error}") from error
    if not key or len(key) > _KEY_BYTES_MAX or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidArgumentError(f"the key file of credentials {name!r} holds no key")
    return origin, key

"""A client's settings: arguments first, then the environment, then defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from fairlead.errors import InvalidArgumentError, Reason, UnauthenticatedError
from fairlead.version import __version__

DEFAULT_ADDRESS = "127.0.0.1:8081"
"""Where a local platform serves gRPC."""
DEFAULT_DEADLINE_S = 600.0
"""Longer than any sensible generation: a bound for the unforeseen, not a service level."""
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
"""Largest answer accepted; grpcio's own 4 MiB is less than a long context's text can be."""
_YES, _NO = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Tls:
    """How to encrypt the connection. All fields may be left out."""

    ca_file: Path | str | None = None
    """PEM file of the authorities to trust; the system's when left out."""
    certificate_file: Path | str | None = None
    """PEM file of the client's own certificate, for mutual TLS."""
    key_file: Path | str | None = None
    """PEM file of the client's private key, for mutual TLS."""
    server_name: str | None = None
    """Name to expect in the server's certificate; the host of the address when left out."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            InvalidArgumentError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca_file, "ca_file"),
            private_key=_read(self.key_file, "key_file"),
            certificate_chain=_read(self.certificate_file, "certificate_file"),
        )


def addresses_from(address: str | Sequence[str] | None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Reads the routers' addresses: the argument, else FAIRLEAD_ADDRESS (comma-separated), else the local platform."""
    if address is None:
        address = environment.get("FAIRLEAD_ADDRESS", "").strip() or DEFAULT_ADDRESS
    parts = address.split(",") if isinstance(address, str) else list(address)
    return [part.strip() for part in parts if part.strip()]


def api_key_from(api_key: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Reads the API key: the argument, else FAIRLEAD_API_KEY.

    Raises:
        UnauthenticatedError: There is none, or it holds characters that cannot be sent.
    """
    key = (api_key if api_key is not None else environment.get("FAIRLEAD_API_KEY", "")).strip()
    if not key:
        raise UnauthenticatedError(
            "no API key: pass api_key=, or set FAIRLEAD_API_KEY; an administrator makes one with "
            "`fairlead keys create TENANT`",
            reason=Reason.MISSING_KEY,
        )
    if not key.isascii() or not key.isprintable():
        raise UnauthenticatedError("the API key holds characters no key has: copy it again", reason=Reason.UNKNOWN_KEY)
    return key


def tls_from(tls: bool | Tls | None, environment: Mapping[str, str] = os.environ) -> Tls | None:
    """Reads whether to encrypt: the argument, else FAIRLEAD_TLS and FAIRLEAD_TLS_CA_FILE, else plain text."""
    if isinstance(tls, Tls):
        return tls
    ca_file = environment.get("FAIRLEAD_TLS_CA_FILE") or None
    if tls is None:
        asked = environment.get("FAIRLEAD_TLS", "1" if ca_file else "").strip().lower()
        if asked not in _YES | _NO:
            raise InvalidArgumentError(f"FAIRLEAD_TLS must be 1 or 0, not {asked!r}", field="tls")
        tls = asked in _YES
    return Tls(ca_file=ca_file) if tls else None


def tls_beside(tickets: bool, tls: Tls | None) -> Tls | None:
    """Checks that tickets and encryption are not asked for together: a replica is never spoken to in the clear instead.

    Raises:
        InvalidArgumentError: They are.
    """
    if tickets and tls is not None:
        raise InvalidArgumentError(
            "tickets=True needs plain text: replicas do not speak TLS. Leave out one of them", field="tickets"
        )
    return tls


def channel_options(tls: Tls | None) -> list[tuple[str, str | int]]:
    """The options of every channel the SDK and the CLI open."""
    options: list[tuple[str, str | int]] = [
        ("grpc.primary_user_agent", f"fairlead-python/{__version__}"),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        # A router that restarts is back within a second: grpcio's own 1 s ... 120 s would outlast it many times.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # So long may the first attempt to connect take: TCP, TLS and HTTP/2 are several round trips of a far client.
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Notices a router that is frozen or cut off while a stream waits; grpcio needs all four for that.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Tries are counted, bounded and traced by `retries`, not by grpcio behind its back.
        ("grpc.enable_retries", 0),
    ]
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _read(path: Path | str | None, field: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}", field=field) from None

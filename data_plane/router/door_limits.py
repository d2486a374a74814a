"""What the front doors make of their settings."""

from __future__ import annotations

import ssl

from data_plane.relay.grpc.limits import CallLimits
from data_plane.relay.http1 import limits as http1
from data_plane.relay.http2.endpoint import Patience
from data_plane.relay.http2.limits import Limits
from data_plane.relay.server import ServerLimits
from data_plane.relay.tls import server_context
from data_plane.router.door_config import DoorConfig
from fairlead.errors import InvalidArgumentError


def server_limits(config: DoorConfig) -> ServerLimits:
    """What clients of gRPC may cost, as set."""
    connection = Limits(
        streams_max=config.connection_streams_max,
        header_list_bytes_max=config.header_bytes_max,
        resets_burst=config.resets_burst,
        resets_per_s=config.resets_per_s,
        controls_burst=config.control_frames_burst,
        controls_per_s=config.control_frames_per_s,
    )
    calls = CallLimits(
        request_s=config.request_receive_s,
        unread_s=config.answer_unread_s,
        process_waiting_bytes_max=config.unfinished_bytes_max,
    )
    patience = Patience(
        stuck_s=config.answer_unread_s, silence_s=config.connection_silence_s, idle_s=config.connection_idle_s
    )
    return ServerLimits(connections_max=config.connections_max, calls=calls, connection=connection, patience=patience)


def http_limits(config: DoorConfig) -> http1.Limits:
    """What clients of HTTP may cost, as set."""
    return http1.Limits(
        head_bytes_max=config.header_bytes_max,
        bodies_bytes_max=config.unfinished_bytes_max,
        connections_max=config.connections_max,
    )


def http_patience(config: DoorConfig) -> http1.Patience:
    """How long clients of HTTP are waited for, as set."""
    usual = http1.Patience()
    return http1.Patience(
        request_s=config.request_receive_s,
        idle_s=min(usual.idle_s, config.connection_idle_s),
        stuck_s=config.answer_unread_s,
    )


def tls(config: DoorConfig, *protocols: str) -> ssl.SSLContext | None:
    """TLS as set; None for plain text.

    Args:
        config: The settings.
        protocols: What is spoken, for ALPN.

    Raises:
        InvalidArgumentError: A file cannot be used, or one of the two is missing.
    """
    if bool(config.tls_certificate_file) != bool(config.tls_key_file):
        raise InvalidArgumentError("set both tls_certificate_file and tls_key_file, or neither")
    if not config.tls_certificate_file:
        if config.tls_client_ca_file:
            raise InvalidArgumentError("tls_client_ca_file needs tls_certificate_file and tls_key_file")
        return None
    return server_context(
        config.tls_certificate_file,
        config.tls_key_file,
        client_ca_file=config.tls_client_ca_file,
        protocols=protocols,
    )

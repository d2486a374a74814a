"""TLS for the doors: who we are, and whether callers must say who they are."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from fairlead.errors import InvalidArgumentError


def server_context(
    certificate_file: str, key_file: str, *, client_ca_file: str = "", protocols: Sequence[str] = ("h2",)
) -> ssl.SSLContext:
    """Reads what a server needs.

    Args:
        certificate_file: PEM, the certificate and those that lead to its root.
        key_file: PEM, its private key.
        client_ca_file: PEM; whose certificates callers must have. Empty asks them for none.
        protocols: What is spoken over it, for ALPN.

    Returns:
        TLS 1.2 or later.

    Raises:
        InvalidArgumentError: A file is missing, is none of these, or certificate and key do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(protocols))
    name = certificate_file
    try:
        context.load_cert_chain(certificate_file, key_file)
        if client_ca_file:
            name = client_ca_file
            context.load_verify_locations(client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # with it SSLError
        raise InvalidArgumentError(f"cannot use the certificate {name}: {error.strerror or error}") from error
    return context

"""What callers send beside a request."""

from __future__ import annotations

from typing import Any

import grpc.aio


def authorization(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """The authorization of a gRPC call, or None where it is missing or no text.

    Args:
        context: The call.
    """
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return value if isinstance(value, str) else None
    return None

"""Who may call: everything needs the admin token, except health checks and reflection. Deny by default."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from fairlead.errors import Reason, UnauthenticatedError

# Whole service names: a method of any other service, known or not, needs the token.
OPEN_SERVICES = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"}
)
_HINT = "send `authorization: Bearer <admin token>` (the content of admin_token_file)"


class AdminAuth(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the type stubs only
    """Refuses calls without the admin token, before their handler is looked up.

    Args:
        token: The token; compared in constant time.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """See grpc.aio."""
        service = handler_call_details.method.lstrip("/").rpartition("/")[0]
        if service in OPEN_SERVICES:
            return await continuation(handler_call_details)
        refusal = self._refusal(handler_call_details.invocation_metadata)
        if refusal is None:
            return await continuation(handler_call_details)
        error = refusal

        async def refuse(_request: Any, _context: Any) -> Any:
            raise error

        return grpc.unary_unary_rpc_method_handler(refuse)

    def _refusal(self, metadata: Any) -> UnauthenticatedError | None:
        value = next((value for key, value in metadata or () if key == "authorization"), None)
        scheme, _, token = (value if isinstance(value, str) else "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return UnauthenticatedError(f"the call carries no admin token: {_HINT}", reason=Reason.MISSING_KEY)
        if not hmac.compare_digest(token.strip().encode(), self._token):
            return UnauthenticatedError(f"the admin token is wrong: {_HINT}", reason=Reason.UNKNOWN_KEY)
        return None

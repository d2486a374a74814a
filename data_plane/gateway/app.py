"""OpenAI's API over the router's flow: who serves which request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from common.clock import Clock
from common.rpc import as_fairlead_error
from data_plane.gateway import errors, render, replies
from data_plane.gateway.generation import Generation
from data_plane.gateway.lookup import Answered, Lookup
from data_plane.relay.http1.calls import HttpCall, Served
from data_plane.relay.http1.requests import Fault
from data_plane.router.decision_service import Decisions
from data_plane.router.flow import Flow
from data_plane.router.tables import Tables
from fairlead.errors import Reason
from fairlead.inference.v1 import decision_pb2

Serve = Callable[[HttpCall], Served]

_GET: Final = ("GET", "HEAD")
_POST: Final = ("POST",)
_MODEL: Final = "/v1/models/"
_REQUEST: Final = "/v1/requests/"
_DECISION: Final = "/decision"
_PATH_CHARS_MAX: Final = 200


class Gateway:
    """OpenAI's API.

    Args:
        flow: Runs requests.
        tables: For the list of models.
        clock: Wall time for `created`.
        decisions: Explains requests.
        body_bytes_max: Largest request body.

    Attributes:
        body_bytes_max: As given.
    """

    def __init__(self, flow: Flow, tables: Tables, clock: Clock, *, decisions: Decisions, body_bytes_max: int) -> None:
        self._flow = flow
        self._tables = tables
        self._clock = clock
        self._decisions = decisions
        self.body_bytes_max = body_bytes_max
        self._places: dict[str, tuple[tuple[str, ...], Serve]] = {
            "/v1/chat/completions": (_POST, lambda call: Generation(flow, clock, call, chat=True)),
            "/v1/completions": (_POST, lambda call: Generation(flow, clock, call, chat=False)),
            "/v1/models": (_GET, lambda call: Lookup(call, self._models(call))),
        }

    def serve(self, call: HttpCall) -> Served:
        """See Application."""
        try:
            methods, serve = self._places.get(call.path) or self._place(call.path)
            if call.method in methods:
                return serve(call)
            _refuse(call, methods)
        except Exception as error:  # noqa: BLE001  # the boundary: nothing may leak, everything is logged
            replies.failed(call, as_fairlead_error(error, call.path), None)
        return Answered()

    def malformed(self, fault: Fault) -> tuple[bytes, bytes]:
        """See Application."""
        return replies.JSON + replies.echo(None), errors.of_fault(fault.status, fault.message, request_id=None)

    def _place(self, path: str) -> tuple[tuple[str, ...], Serve]:
        """What is served at a path with a name in it; anywhere else there is nothing."""
        if path.startswith(_MODEL) and len(path) > len(_MODEL):
            name = unquote(path[len(_MODEL) :])
            return _GET, lambda call: Lookup(call, self._model(call, name))
        name = unquote(path[len(_REQUEST) : -len(_DECISION)])
        if path.startswith(_REQUEST) and path.endswith(_DECISION) and name:
            return _GET, lambda call: Lookup(call, self._decision(call, name))
        return (), lambda call: Answered()

    async def _models(self, call: HttpCall) -> bytes:
        caller = self._flow.admission.authenticate(replies.authorization(call))
        data = [render.model(record) for record in self._tables.models_of(caller.tenant_id)]
        return render.encode({"object": "list", "data": data})

    async def _model(self, call: HttpCall, name: str) -> bytes:
        caller = self._flow.admission.authenticate(replies.authorization(call))
        return render.encode(render.model(self._tables.model(caller.tenant_id, name)))

    async def _decision(self, call: HttpCall, name: str) -> bytes:
        wanted = decision_pb2.GetDecisionRequest(request_id=name)
        return render.message(await self._decisions.explain(wanted, replies.authorization(call)))


def _refuse(call: HttpCall, methods: tuple[str, ...]) -> None:
    """What is nowhere served, or not with this method."""
    more = b""
    if methods:
        status, code, allowed = 405, "method_not_allowed", ",".join(methods)
        more = f"Allow: {allowed}\r\n".encode()
        message = f"{call.method} is not allowed here; use {allowed}"
    else:
        status, code = 404, "unknown_url"
        path = call.path[:_PATH_CHARS_MAX]
        message = f"there is nothing at {call.method} {path}; see /v1/models, /v1/chat/completions"
    body = errors.render(message, status=status, code=code, reason=Reason.INVALID_ARGUMENT.value)
    replies.refused(call, status, body, None, more)

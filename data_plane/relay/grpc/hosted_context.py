"""What a hosted servicer knows of its call: the part of grpc.aio's ServicerContext that servicers use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from data_plane.relay.grpc.calls import ServerCall
from data_plane.relay.grpc.status import binary, from_binary, status
from data_plane.relay.http2.header_blocks import literal

Metadata = Sequence[tuple[str, str | bytes]]

_OF_THE_WIRE: Final = frozenset({b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"})


class HostedContext:
    """See the module; names and meanings are grpc.aio's.

    Args:
        call: The call.
        read: Reads the next request.
        write: Writes a response.
    """

    def __init__(
        self, call: ServerCall, read: Callable[[], Awaitable[Any]], write: Callable[[Any], Awaitable[None]]
    ) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._trailing: Metadata = ()
        self._code: Any = grpc.StatusCode.OK
        self._details = ""
        self._done: list[Callable[[Any], None]] = []
        self._finished = False
        self.read = read
        self.write = write

    @property
    def ok(self) -> bool:
        """Whether nobody has set another code."""
        return self._code is grpc.StatusCode.OK

    def invocation_metadata(self) -> Metadata:
        """The request's metadata."""
        metadata: list[tuple[str, str | bytes]] = []
        for name, value in self._call.fields.pairs:
            if name[:1] == b":" or name in _OF_THE_WIRE:
                continue
            if name.endswith(b"-bin"):
                read = from_binary(value)
                if read is not None:
                    metadata.append((name.decode("latin-1"), read))
            else:
                metadata.append((name.decode("latin-1"), value.decode("latin-1")))
        return tuple(metadata)

    def time_remaining(self) -> float | None:
        """Seconds to the caller's deadline; None where it gave none."""
        deadline_s = self._call.deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - self._loop.time())

    def peer(self) -> str:
        """Who calls."""
        return self._call.peer

    def peer_identities(self) -> None:
        """None: clients' certificates are checked, not passed on."""

    def peer_identity_key(self) -> None:
        """None."""

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Empty."""
        return {}

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Sends the answer's headers now."""
        self._call.send_head(_block(initial_metadata))

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Says which trailers are sent at the end."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Metadata:
        """What was set."""
        return self._trailing

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """
        if code is grpc.StatusCode.OK:
            raise ValueError("a call is not aborted with OK")
        self._code, self._details = code, details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise grpc.aio.AbortError("Locally aborted.")

    def set_code(self, code: grpc.StatusCode) -> None:
        """Says with which status the call ends."""
        self._code = code

    def set_details(self, details: str) -> None:
        """And with which text."""
        self._details = details

    def code(self) -> Any:
        """What was set."""
        return self._code

    def details(self) -> str:
        """What was set."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Nothing: answers are not compressed."""

    def disable_next_message_compression(self) -> None:
        """Nothing."""

    def cancelled(self) -> bool:
        """Whether the client has given up."""
        return self._call.over and not self._finished

    def done(self) -> bool:
        """Whether the call is over."""
        return self._call.over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Calls back at the call's end."""
        self._done.append(callback)

    def run_done_callbacks(self, _task: object) -> None:
        """The call's task has ended."""
        for callback in self._done:
            callback(self)

    def trailers(self) -> bytes:
        """The trailers that were set, as a header block."""
        return _block(self._trailing)

    def status(self) -> bytes:
        """All trailers of an end without an exception, or of an abort."""
        self._finished = True
        return status(self._code.value[0], self._details) + self.trailers()


def _block(metadata: Metadata) -> bytes:
    parts = []
    for key, value in metadata:
        name = key.lower().encode("ascii")
        if name.endswith(b"-bin"):
            raw = binary(value if isinstance(value, bytes) else value.encode())
        else:
            raw = value if isinstance(value, bytes) else value.encode("ascii", "replace")
        parts.append(literal(name, raw))
    return b"".join(parts)

"""Triton's messages (KServe v2), written and read by their bytes.

Routers see two of them: ModelInferRequest once per request, ModelStreamInferResponse once per token. Generated classes
would bring Triton's client package, with numpy, into every router, and take each token's message apart in full, though
all of a stream are alike up to their tensors' bytes: `ResponseReader` remembers that beginning and compares it.

Source: github.com/triton-inference-server/common, protobuf/grpc_service.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from common.triton.wire import Tensors

PATH: Final = "/inference.GRPCInferenceService/ModelStreamInfer"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX: Final = 10

# ModelInferRequest
_MODEL_NAME, _ID, _PARAMETERS, _INPUTS, _OUTPUTS, _RAW_INPUTS = 1, 3, 4, 5, 6, 7
# ModelStreamInferResponse
_ERROR, _RESPONSE = 1, 2
# ModelInferResponse
_TENSORS, _RAW_OUTPUTS = 5, 6
# Of an entry of `parameters`, and of its value.
_KEY, _VALUE, _BOOL = 1, 2, 1

_RESPONSE_TAG: Final = _RESPONSE << 3 | _BYTES
_RAW_TAG: Final = _RAW_OUTPUTS << 3 | _BYTES
_FINAL: Final = b"triton_final_response"
_TEXT_TENSOR: Final = "text_output"

# How a text begins in a tensor of so many bytes: its own length, four bytes. Less than these it cannot be.
_SIZES: Final = (*[b"never"] * 4, *((size - 4).to_bytes(4, "little") for size in range(4, 128)))


class NoMessageError(ValueError):
    """These bytes are not that message."""


def request_message(model: str, request_id: str, tensors: Tensors) -> bytes:
    """A ModelInferRequest.

    Args:
        model: The model's name.
        request_id: For Triton's logs.
        tensors: The request.
    """
    parts = [_text(_MODEL_NAME, model), _text(_ID, request_id), _EMPTY_FINAL_RESPONSE]
    for name, datatype, shape, _ in tensors.inputs:
        dimensions = b"".join(_varint(size) for size in shape)
        parts.append(_field(_INPUTS, _text(1, name) + _text(2, datatype) + _field(3, dimensions)))
    parts += [_field(_OUTPUTS, _text(1, name)) for name in tensors.outputs]
    parts += [_field(_RAW_INPUTS, raw) for *_, raw in tensors.inputs]
    return b"".join(parts)


class ResponseReader:
    """Reads the responses of one stream.

    Attributes:
        error: What the last response complains of; empty where it does not.
        final: Whether it is the last one by its own word.
        raw: Its tensors' bytes, in the order of `names`.
        names: Of its tensors.
    """

    __slots__ = ("_head", "_tail", "_text_head", "error", "final", "names", "raw")

    def __init__(self) -> None:
        self._head = b""  # of a response that is not the last: all before its tensors' bytes
        self._text_head = b""  # the same and the tag of its first tensor's bytes, where that is the text
        self._tail = b""  # what came after these
        self.error = ""
        self.final = False
        self.names: list[str] = []
        self.raw: list[bytes] = []

    def next_text(self, data: bytes, at: int) -> bytes | None:
        """The text of a response that says the same as the one that was read last, but for its text.

        Args:
            data: Its bytes.
            at: Where they begin.

        Returns:
            The text, not checked to be UTF-8; None where the response must be read.
        """
        head = self._text_head
        if not head:
            return None
        try:
            begin = at + 2 if data[at + 1] < 0x80 else at + 3
            if not data.startswith(head, begin):
                return None
            begin += len(head)
            size = data[begin]
            after = begin + 1 + size
            if size < 0x80 and data[begin + 1 : begin + 5] == _SIZES[size] and data[after:] == self._tail:
                return data[begin + 5 : after]
        except IndexError:
            pass
        return None

    def read(self, data: bytes, at: int = 0) -> None:
        """Reads a ModelStreamInferResponse.

        Args:
            data: Its bytes.
            at: Where they begin.

        Raises:
            NoMessageError: They are not one.
        """
        head = self._head
        if head:
            begin = at + 2
            while begin <= len(data) and data[begin - 1] & 0x80:
                begin += 1
            if data.startswith(head, begin) and data[at] == _RESPONSE_TAG and self._read_raw(data, begin + len(head)):
                return
        self._read(data[at:])

    def _read_raw(self, data: bytes, at: int) -> bool:
        """Reads the tensors' bytes of a response that begins as the one before; False where there is more to it."""
        raw, end, tail_at = [], len(data), 0
        try:
            while at < end:
                if data[at] != _RAW_TAG:
                    return False
                size, at = data[at + 1], at + 2
                if size >= 0x80:
                    more = data[at]
                    if more >= 0x80:
                        return False
                    size, at = size & 0x7F | more << 7, at + 1
                after = at + size
                raw.append(data[at:after])
                at = after
                tail_at = tail_at or after
        except IndexError:
            return False
        if at != end or len(raw) != len(self.names):
            return False
        self.raw, self._tail = raw, data[tail_at:]
        return True

    def _read(self, data: bytes) -> None:
        self.error, self.final, self.names, self.raw = "", False, [], []
        self._head = self._text_head = b""
        for number, kind, begin, end in _fields(data):
            if kind == _BYTES and number == _ERROR:
                self.error = data[begin:end].decode(errors="replace")
            elif kind == _BYTES and number == _RESPONSE:
                self._read_response(data[begin:end])
        if self.error:  # the next one need not have it
            self._head = self._text_head = b""

    def _read_response(self, data: bytes) -> None:
        head_end = tail_at = before = 0
        in_order = True
        for number, kind, begin, end in _fields(data):
            content = data[begin:end] if kind == _BYTES else b""
            if number == _PARAMETERS:
                self._read_parameter(content)
            elif number == _TENSORS:
                self.names.append(_name(content))
            elif number == _RAW_OUTPUTS:
                if not self.raw:
                    head_end, tail_at = before, end
                self.raw.append(content)
            in_order = in_order and (not self.raw or number == _RAW_OUTPUTS)
            before = end
        if len(self.raw) > len(self.names):
            raise NoMessageError("more bytes than tensors")
        if in_order and not self.final and len(self.raw) == len(self.names) > 0:
            self._head = data[:head_end]
            if self.names[0] == _TEXT_TENSOR:
                self._text_head, self._tail = self._head + bytes((_RAW_TAG,)), data[tail_at:]

    def _read_parameter(self, entry: bytes) -> None:
        key, value = b"", False
        for number, kind, begin, end in _fields(entry):
            if kind == _BYTES and number == _KEY:
                key = entry[begin:end]
            elif kind == _BYTES and number == _VALUE:
                inner = entry[begin:end]
                value = any(
                    each == _BOOL and of == _VARINT and any(inner[first:last])
                    for each, of, first, last in _fields(inner)
                )
        if key == _FINAL:
            self.final = value


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, begin and end of every field."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        kind, begin = tag & 7, at
        if kind == _VARINT:
            _, at = _read_varint(data, at)
        elif kind == _BYTES:
            size, begin = _read_varint(data, at)
            at = begin + size
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        else:
            raise NoMessageError(f"wire type {kind}")
        if at > end or not tag >> 3:
            raise NoMessageError("a field is cut off")
        yield tag >> 3, kind, begin, at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(at, min(len(data), at + _VARINT_BYTES_MAX)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise NoMessageError("a number is cut off")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode()) if text else b""


def _name(tensor: bytes) -> str:
    for number, kind, begin, end in _fields(tensor):
        if number == 1 and kind == _BYTES:
            return tensor[begin:end].decode(errors="replace")
    return ""


# Without it the end of a stream whose last response came before the end was known would be silent.
_EMPTY_FINAL_RESPONSE: Final = _field(
    _PARAMETERS, _text(_KEY, "triton_enable_empty_final_response") + _field(_VALUE, bytes((_BOOL << 3, 1)))
)

"""What tests of the Triton dialect share: replicas' records, and responses."""

from __future__ import annotations

import struct
from typing import Any

from tritonclient.grpc import service_pb2

from common.triton.wire import Dialect
from engines.triton.tensors import INPUTS, MODEL_NAMES, OUTPUTS
from fairlead.engine.v1 import engine_pb2

Response = service_pb2.ModelStreamInferResponse


def record_of(dialect: Dialect, address: str = "", **fields: Any) -> engine_pb2.Replica:
    """A replica's record as its agent writes it."""
    record = engine_pb2.Replica(
        replica_id="m-1",
        dialect=engine_pb2.DIALECT_TRITON,
        engine_address=address,
        engine_model=MODEL_NAMES[dialect],
        context_tokens=4096,
    )
    for tensor in INPUTS[dialect]:
        datatype = "BYTES" if tensor.datatype == "STRING" else tensor.datatype
        record.triton.inputs.add(name=tensor.name, datatype=datatype, rank=1)
    record.triton.outputs.extend(tensor.name for tensor in OUTPUTS[dialect])
    for name, value in fields.items():
        setattr(record.triton, name, value)
    return record


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return struct.pack("<i", value)


def response(final: bool = False, **tensors: bytes) -> Any:
    message = Response()
    inner = message.infer_response
    inner.model_name, inner.model_version, inner.id = "ensemble", "1", "r-1"
    inner.parameters["triton_final_response"].bool_param = final
    for name, raw in tensors.items():
        inner.outputs.add(name=name, datatype="BYTES", shape=[1])
        inner.raw_output_contents.append(raw)
    return message


def token(value: str | bytes, tokens: int = 1, *, final: bool = False) -> Any:
    """A response of the ensemble dialect."""
    return response(final, text_output=text(value), num_input_tokens=number(7), num_output_tokens=number(tokens))

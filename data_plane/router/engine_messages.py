"""What is said to replicas, and what is made of their answers for the client."""

from __future__ import annotations

import secrets
import struct
from typing import Final

from common.shard_map import Generation
from data_plane.relay.grpc import wire
from data_plane.router.core.continuation import Replay
from data_plane.router.routing import Chosen, Route, weight
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.sharding.v1 import sharding_pb2

_Request = engine_pb2.EngineGenerateRequest
_REQUEST_ID: Final = wire.bytes_tag(_Request.REQUEST_ID_FIELD_NUMBER)
_TENANT_ID: Final = wire.bytes_tag(_Request.TENANT_ID_FIELD_NUMBER)
_REQUEST: Final = wire.bytes_tag(_Request.REQUEST_FIELD_NUMBER)
_PRIORITY: Final = wire.number_tag(_Request.PRIORITY_FIELD_NUMBER)
_PREFILL: Final = wire.number_tag(_Request.PREFILL_MILLI_MU_FIELD_NUMBER)
_DECODE: Final = wire.number_tag(_Request.DECODE_MILLI_MU_FIELD_NUMBER)
_WEIGHT: Final = wire.number_tag(_Request.WEIGHT_FIELD_NUMBER)
_ROUTER_ID: Final = wire.bytes_tag(_Request.ROUTER_ID_FIELD_NUMBER)
_DISPATCH: Final = wire.number_tag(_Request.DISPATCH_NUMBER_FIELD_NUMBER)
_SHARD_KEY: Final = wire.fixed64_tag(_Request.SHARD_KEY_FIELD_NUMBER)
_ASSIGNMENT: Final = wire.bytes_tag(_Request.ASSIGNMENT_FIELD_NUMBER)
_BLOCKS: Final = wire.bytes_tag(_Request.PREFIX_BLOCKS_FIELD_NUMBER)
_INCARNATION: Final = wire.number_tag(sharding_pb2.Generation.INCARNATION_FIELD_NUMBER)
_NUMBER: Final = wire.number_tag(sharding_pb2.Generation.NUMBER_FIELD_NUMBER)
_SAMPLING: Final = wire.bytes_tag(pb.GenerateRequest.SAMPLING_FIELD_NUMBER)
_MAX_TOKENS: Final = wire.number_tag(pb.SamplingParameters.MAX_TOKENS_FIELD_NUMBER)


def engine_request(route: Route, chosen: Chosen, router_id: str) -> bytes:
    """A request as its replica gets it: an engine.v1.EngineGenerateRequest.

    Args:
        route: The request, and where it lies.
        chosen: The replica.
        router_id: This router, as the replica knows it from its load stream.
    """
    order = route.order
    request_id = route.receipt.request_id
    if order.request.request_id:
        # Two tenants may name their requests alike, and a client may cancel and send one again at once; a replica must
        # never see one id twice at a time.
        request_id += "-" + secrets.token_hex(4)
    # The request goes on as it came, its prompt uncopied by fields; what is said of a message again replaces it.
    length = wire.message(_SAMPLING, _MAX_TOKENS + wire.varint(order.checked.max_tokens))
    return b"%b%b%b%b%b%b%b%b%b%b%b%b" % (
        wire.content(_REQUEST_ID, request_id.encode()),
        wire.content(_TENANT_ID, order.tenant_id.encode()),
        wire.message(_REQUEST, (order.raw or order.request.SerializeToString()) + length),
        wire.number(_PRIORITY, order.checked.priority),
        wire.number(_PREFILL, chosen.pick.uncached_prefill_milli_mu),
        wire.number(_DECODE, order.price.cost.decode_milli_mu),
        wire.number(_WEIGHT, weight(route.receipt)),
        wire.content(_ROUTER_ID, router_id.encode()),
        wire.number(_DISPATCH, chosen.dispatch.number),
        wire.fixed64(_SHARD_KEY, route.shard_key),
        assignment(_ASSIGNMENT, chosen.generation),
        wire.content(_BLOCKS, struct.pack(f"<{len(route.blocks)}Q", *route.blocks)) if route.blocks else b"",
    )


def assignment(tag: bytes, generation: Generation) -> bytes:
    """A field of the assignment that a request was routed by: a sharding.v1.Generation. Nothing where there was none.

    Args:
        tag: From `wire.bytes_tag`.
        generation: Of the assignment, or the zero generation.
    """
    if not generation.incarnation and not generation.number:
        return b""
    incarnation = wire.number(_INCARNATION, generation.incarnation)
    return wire.message(tag, incarnation + wire.number(_NUMBER, generation.number))


def skipped(replay: Replay, message: engine_pb2.EngineGenerateResponse) -> tuple[str, int]:
    """The text and the tokens of a second run's message that are new to the client.

    Args:
        replay: What the client has, and how far the second run has repeated it.
        message: Of the second run.

    Raises:
        UnavailableError: The second run says something else than the first; reason STREAM_BROKEN.
    """
    fresh = replay.feed(message.text, message.output_tokens)
    if not replay.agrees or (message.finish_reason and not replay.caught_up):
        raise UnavailableError("the second replica's text differs from what was delivered", reason=Reason.STREAM_BROKEN)
    return fresh

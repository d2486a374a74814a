"""What is said to replicas, and what is made of their answers for the client."""

from __future__ import annotations

import secrets

from data_plane.router.core.continuation import Replay
from data_plane.router.routing import Chosen, Route, weight
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import Reason, UnavailableError


def engine_request(route: Route, chosen: Chosen, router_id: str) -> engine_pb2.EngineGenerateRequest:
    """A request as its replica gets it.

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
    generation = chosen.generation
    message = engine_pb2.EngineGenerateRequest(
        request_id=request_id,
        tenant_id=order.tenant_id,
        priority=order.checked.priority,
        prefill_milli_mu=chosen.pick.uncached_prefill_milli_mu,
        decode_milli_mu=order.price.cost.decode_milli_mu,
        weight=weight(route.receipt),
        router_id=router_id,
        dispatch_number=chosen.dispatch.number,
        shard_key=route.shard_key,
        prefix_blocks=route.blocks,
    )
    if generation.incarnation or generation.number:
        message.assignment.CopyFrom(generation.message())
    # Through bytes: protobuf takes three times as long to copy a message as to write and to read it.
    request = message.request
    request.MergeFromString(order.request.SerializeToString())
    request.sampling.max_tokens = order.checked.max_tokens
    return message


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

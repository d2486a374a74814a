"""TicketService: clients stream from this replica themselves, each with a ticket of a router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from common.generation import FINISH_REASONS
from common.telemetry import extract
from engines.agent.issuers import Issuers, Redeemed
from engines.agent.requests import Produced, Requests
from fairlead.engine.v1 import engine_pb2, ticket_pb2
from fairlead.errors import DeadlineExceededError, FairleadError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2, ticket_pb2_grpc
from fairlead.inference.v1 import ticket_pb2 as public_pb2
from model_units.cost import Cost, CostForm, CostProfile, cost_in_range
from model_units.prefix import prefix_blocks, prompt_chunks

SERVICE: Final = public_pb2.DESCRIPTOR.services_by_name["TicketService"].full_name

# A client that does not read keeps its stream stuck in a write; that ends so long after the deadline.
_STUCK_GRACE_S: Final = 0.2


class TicketServicer(ticket_pb2_grpc.TicketServiceServicer):
    """Serves those who hold a ticket.

    Args:
        replica_id: This replica.
        issuers: Check tickets and hear what becomes of them.
        requests: Serves requests.
    """

    def __init__(self, replica_id: str, issuers: Issuers, requests: Requests) -> None:
        self._replica_id = replica_id
        self._issuers = issuers
        self._requests = requests

    async def StreamGenerate(
        self, request: public_pb2.RedeemRequest, context: Any
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        """See TicketService."""
        ticket = self._issuers.redeem(request)
        task = asyncio.current_task()
        assert task is not None
        loop, left_s, delivered = asyncio.get_running_loop(), ticket.left_s, 0
        stuck = loop.call_later(left_s + _STUCK_GRACE_S, task.cancel)
        try:
            parent = extract(context.invocation_metadata() or ())
            async with aclosing(self._requests.serve(_engine_request(ticket, request.request), parent)) as pieces:
                ends_s = loop.time() + left_s
                while True:
                    async with asyncio.timeout_at(ends_s):
                        piece = await anext(pieces)
                    delivered = piece.output_tokens
                    yield self._message(ticket, piece)
                    if piece.batch.finish is not None:
                        return
        except TimeoutError:
            ticket.failed(Reason.DEADLINE_EXCEEDED)
            raise DeadlineExceededError("the deadline of the ticket's request passed") from None
        except FairleadError as error:
            ticket.failed(error.reason)
            raise _told(error, delivered) from error
        except Exception:
            ticket.failed(Reason.INTERNAL)
            raise
        finally:
            stuck.cancel()
            ticket.cancelled()  # where it has not ended otherwise, the client is gone

    def _message(self, ticket: Redeemed, piece: Produced) -> inference_pb2.StreamGenerateResponse:
        """A piece for the client, counted as delivered."""
        batch = piece.batch
        ticket.delivered(batch.output_tokens)
        message = inference_pb2.StreamGenerateResponse(text=batch.text, output_tokens=batch.output_tokens)
        if piece.first or batch.finish is not None:
            message.request_id, message.replica_id = ticket.claims.request_id, self._replica_id
        if batch.finish is not None:
            usage = piece.usage
            ticket.completed(FINISH_REASONS[batch.finish], usage)
            message.finish_reason = FINISH_REASONS[batch.finish]
            price = ticket.claims.price
            usage.input_tokens = usage.input_tokens or price.input_tokens
            message.usage.CopyFrom(usage)
            cost = _cost(price, usage)
            message.cost.estimated_milli_mu = price.estimated_milli_mu
            message.cost.settled_milli_mu = cost.total_milli_mu
            message.cost.prefill_milli_mu = cost.prefill_milli_mu
            message.cost.decode_milli_mu = cost.decode_milli_mu
            message.cost.quota_left_milli_mu = price.quota_left_milli_mu
        return message


def _engine_request(ticket: Redeemed, request: inference_pb2.GenerateRequest) -> engine_pb2.EngineGenerateRequest:
    """The request as the router would have sent it."""
    claims = ticket.claims
    message = engine_pb2.EngineGenerateRequest(
        request_id=claims.request_id,  # the dispatcher tells requests of one id apart
        tenant_id=claims.tenant_id,
        request=request,
        priority=claims.priority,
        prefill_milli_mu=claims.prefill_milli_mu,
        decode_milli_mu=claims.decode_milli_mu,
        weight=claims.weight,
        router_id=ticket.router_id,
        dispatch_number=claims.dispatch_number,
        shard_key=claims.shard_key,
        prefix_blocks=prefix_blocks(prompt_chunks(request)) if claims.with_prefix_blocks else (),
    )
    if claims.HasField("assignment"):
        message.assignment.CopyFrom(claims.assignment)
    message.request.sampling.max_tokens = claims.max_tokens
    return message


def _told(error: FairleadError, delivered: int) -> FairleadError:
    """What the client is told of a failure; after the first token every failed replica breaks the stream."""
    if not delivered or not isinstance(error, UnavailableError):
        return error
    return UnavailableError(
        f"the stream broke after {delivered} tokens; what arrived was charged",
        reason=Reason.STREAM_BROKEN,
        metadata={"output_tokens": str(delivered)},
    )


def _cost(price: ticket_pb2.TicketPrice, usage: inference_pb2.Usage) -> Cost:
    """What the router will charge."""
    profile = CostProfile(
        profile_id="ticket/any/1",
        model="ticket",
        hardware="any",
        engine="any",
        tpot_objective_ms=1.0,
        a=price.a,
        b=price.b,
        d=price.d,
        g=price.g,
        provenance="a ticket",
        version=1,
        form=CostForm.PRODUCT if price.product else CostForm.ATTENTION,
    )
    cached = min(usage.cached_input_tokens, usage.input_tokens)
    return cost_in_range(profile, usage.input_tokens, usage.output_tokens, cached)

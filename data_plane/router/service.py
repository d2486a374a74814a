"""The inference API over gRPC: translates between the wire and the flow, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio

from common.clock import NS_PER_S, Clock
from common.telemetry import trace_fields
from data_plane.router.answers import last_message, receipt_metadata, whole_message
from data_plane.router.core.pricing import Pricing
from data_plane.router.exchange import Call, Delta
from data_plane.router.flow import Flow
from data_plane.router.metadata import authorization
from data_plane.router.tables import Tables
from data_plane.router.ticket_desk import TicketDesk
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.inference.v1 import inference_pb2_grpc

ServicerContext = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """See inference.proto.

    Args:
        flow: Runs requests.
        tables: For ListModels.
        pricing: For the bytes per token a client may estimate with.
        clock: Monotonic time.
        tickets: Issues tickets.
    """

    def __init__(self, flow: Flow, tables: Tables, pricing: Pricing, clock: Clock, tickets: TicketDesk) -> None:
        self._flow = flow
        self._tickets = tickets
        self._tables = tables
        self._pricing = pricing
        self._clock = clock

    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> pb.GenerateResponse:
        """See inference.proto."""
        exchange = self._flow.open(self._call(request, context))
        texts: list[str] = []
        response = pb.GenerateResponse()
        try:
            async with aclosing(exchange.events()) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        texts.append(event.text)
                    else:
                        whole = whole_message(exchange.receipt, "".join(texts).encode(), event)
                        response = pb.GenerateResponse.FromString(whole)
        finally:
            context.set_trailing_metadata(receipt_metadata(exchange.receipt))
        return response

    async def StreamGenerate(
        self, request: pb.GenerateRequest, context: ServicerContext
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """See inference.proto."""
        exchange = self._flow.open(self._call(request, context))
        first = True
        try:
            async with aclosing(exchange.events()) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        message = pb.StreamGenerateResponse(text=event.text, output_tokens=event.output_tokens)
                        if first:
                            first = False
                            message.request_id = exchange.receipt.request_id
                            message.replica_id = exchange.receipt.replica_id
                        yield message
                    else:
                        # Trailers before the last message: a client may stop reading after it.
                        context.set_trailing_metadata(receipt_metadata(exchange.receipt))
                        yield pb.StreamGenerateResponse.FromString(last_message(exchange.receipt, event))
        finally:
            context.set_trailing_metadata(receipt_metadata(exchange.receipt))

    async def IssueTicket(self, request: pb.GenerateRequest, context: ServicerContext) -> pb.Ticket:
        """See inference.proto."""
        return await self._tickets.issue(self._call(request, context))

    async def ReturnTicket(self, request: pb.ReturnTicketRequest, context: ServicerContext) -> pb.ReturnTicketResponse:
        """See inference.proto."""
        self._tickets.give_back(request.token, authorization(context))
        return pb.ReturnTicketResponse()

    async def ListModels(self, request: pb.ListModelsRequest, context: ServicerContext) -> pb.ListModelsResponse:
        """See inference.proto."""
        caller = self._flow.admission.authenticate(authorization(context))
        return pb.ListModelsResponse(
            models=[
                pb.ModelInfo(
                    id=model.model_id,
                    context_tokens=model.context_tokens,
                    output_tokens_max=model.output_tokens_max,
                    bytes_per_token=self._pricing.bytes_per_token(model.model_id, model.bytes_per_token),
                    create_time_s=model.create_time.seconds,
                )
                for model in self._tables.models_of(caller.tenant_id)
            ]
        )

    def _call(self, request: pb.GenerateRequest, context: ServicerContext) -> Call:
        left_s = context.time_remaining()
        deadline_ns = None if left_s is None else self._clock.monotonic_ns() + int(left_s * NS_PER_S)
        return Call(request, authorization(context), deadline_ns, trace_fields(context.invocation_metadata() or ()))

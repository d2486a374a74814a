"""What a ticket says, as bytes: its claims to the replica, and the ticket itself to the client."""

from __future__ import annotations

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from common.clock import NS_PER_S
from data_plane.relay.grpc import wire
from data_plane.router.engine_messages import assignment
from data_plane.router.exchange import Receipt
from data_plane.router.routing import Chosen, Route, weight
from fairlead.engine.v1 import ticket_pb2
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.cost import CostForm, CostProfile

_Claims = ticket_pb2.TicketClaims
_NUMBER: Final = wire.number_tag(_Claims.NUMBER_FIELD_NUMBER)
_DIGEST: Final = wire.bytes_tag(_Claims.REQUEST_DIGEST_FIELD_NUMBER)
_EXPIRES: Final = wire.number_tag(_Claims.EXPIRES_NS_FIELD_NUMBER)
_DEADLINE: Final = wire.number_tag(_Claims.DEADLINE_NS_FIELD_NUMBER)
_CLAIMED_REQUEST_ID: Final = wire.bytes_tag(_Claims.REQUEST_ID_FIELD_NUMBER)
_TENANT_ID: Final = wire.bytes_tag(_Claims.TENANT_ID_FIELD_NUMBER)
_MAX_TOKENS: Final = wire.number_tag(_Claims.MAX_TOKENS_FIELD_NUMBER)
_PRIORITY: Final = wire.number_tag(_Claims.PRIORITY_FIELD_NUMBER)
_PREFILL: Final = wire.number_tag(_Claims.PREFILL_MILLI_MU_FIELD_NUMBER)
_DECODE: Final = wire.number_tag(_Claims.DECODE_MILLI_MU_FIELD_NUMBER)
_WEIGHT: Final = wire.number_tag(_Claims.WEIGHT_FIELD_NUMBER)
_DISPATCH: Final = wire.number_tag(_Claims.DISPATCH_NUMBER_FIELD_NUMBER)
_SHARD_KEY: Final = wire.fixed64_tag(_Claims.SHARD_KEY_FIELD_NUMBER)
_ASSIGNMENT: Final = wire.bytes_tag(_Claims.ASSIGNMENT_FIELD_NUMBER)
_WITH_BLOCKS: Final = wire.number_tag(_Claims.WITH_PREFIX_BLOCKS_FIELD_NUMBER)
_PRICE: Final = wire.bytes_tag(_Claims.PRICE_FIELD_NUMBER)
_PRICE_ESTIMATED: Final = wire.number_tag(ticket_pb2.TicketPrice.ESTIMATED_MILLI_MU_FIELD_NUMBER)
_PRICE_QUOTA_LEFT: Final = wire.number_tag(ticket_pb2.TicketPrice.QUOTA_LEFT_MILLI_MU_FIELD_NUMBER)
_PRICE_INPUT: Final = wire.number_tag(ticket_pb2.TicketPrice.INPUT_TOKENS_FIELD_NUMBER)
_REQUEST_ID: Final = wire.bytes_tag(pb.Ticket.REQUEST_ID_FIELD_NUMBER)
_ADDRESS: Final = wire.bytes_tag(pb.Ticket.ADDRESS_FIELD_NUMBER)
_TOKEN: Final = wire.bytes_tag(pb.Ticket.TOKEN_FIELD_NUMBER)
_EXPIRE_TIME: Final = wire.bytes_tag(pb.Ticket.EXPIRE_TIME_FIELD_NUMBER)
_REPLICA_ID: Final = wire.bytes_tag(pb.Ticket.REPLICA_ID_FIELD_NUMBER)
_ESTIMATED: Final = wire.number_tag(pb.Ticket.ESTIMATED_MILLI_MU_FIELD_NUMBER)
_QUOTA_LEFT: Final = wire.number_tag(pb.Ticket.QUOTA_LEFT_MILLI_MU_FIELD_NUMBER)
_SECONDS: Final = wire.number_tag(Timestamp.SECONDS_FIELD_NUMBER)
_NANOS: Final = wire.number_tag(Timestamp.NANOS_FIELD_NUMBER)


class ClaimsWriter:
    """Writes claims. What is the same for every request of a cost profile is written once."""

    def __init__(self) -> None:
        self._formulas: dict[str, tuple[CostProfile, bytes]] = {}

    def claims(self, route: Route, chosen: Chosen, number: int, digest: bytes, expires_ns: int) -> bytes:
        """An engine.v1.TicketClaims.

        Args:
            route: The request, and where it lies.
            chosen: The replica.
            number: The ticket's.
            digest: Of what the client sent.
            expires_ns: When it can no longer be redeemed.
        """
        order, receipt = route.order, route.receipt
        price = b"%b%b%b%b" % (
            wire.number(_PRICE_ESTIMATED, receipt.estimated_milli_mu),
            wire.number(_PRICE_QUOTA_LEFT, receipt.quota_left_milli_mu),
            wire.number(_PRICE_INPUT, order.price.input_tokens),
            self._formula(order.profile),
        )
        return b"%b%b%b%b%b%b%b%b%b%b%b%b%b%b%b%b" % (
            wire.number(_NUMBER, number),
            wire.content(_DIGEST, digest),
            wire.number(_EXPIRES, expires_ns),
            wire.number(_DEADLINE, order.deadline_ns),
            wire.content(_CLAIMED_REQUEST_ID, receipt.request_id.encode()),
            wire.content(_TENANT_ID, order.tenant_id.encode()),
            wire.number(_MAX_TOKENS, order.checked.max_tokens),
            wire.number(_PRIORITY, order.checked.priority),
            wire.number(_PREFILL, chosen.pick.uncached_prefill_milli_mu),
            wire.number(_DECODE, order.price.cost.decode_milli_mu),
            wire.number(_WEIGHT, weight(receipt)),
            wire.number(_DISPATCH, chosen.dispatch.number),
            wire.fixed64(_SHARD_KEY, route.shard_key),
            assignment(_ASSIGNMENT, chosen.generation),
            wire.number(_WITH_BLOCKS, 1 if route.blocks else 0),
            wire.message(_PRICE, price),
        )

    def _formula(self, profile: CostProfile) -> bytes:
        """The part of a TicketPrice that is the profile's."""
        kept = self._formulas.get(profile.profile_id)
        if kept is None or kept[0] is not profile:
            formula = ticket_pb2.TicketPrice(
                a=profile.a, b=profile.b, d=profile.d, g=profile.g, product=profile.form is CostForm.PRODUCT
            )
            kept = self._formulas[profile.profile_id] = profile, formula.SerializeToString()
        return kept[1]


def ticket_message(receipt: Receipt, address: str, token: bytes, expire_wall_ns: int) -> bytes:
    """An inference.v1.Ticket.

    Args:
        receipt: Of the request.
        address: Where the replica takes tickets.
        token: What it is shown.
        expire_wall_ns: By when, wall time.
    """
    expire_time = wire.number(_SECONDS, expire_wall_ns // NS_PER_S) + wire.number(_NANOS, expire_wall_ns % NS_PER_S)
    return b"%b%b%b%b%b%b%b" % (
        wire.content(_REQUEST_ID, receipt.request_id.encode()),
        wire.content(_ADDRESS, address.encode()),
        wire.content(_TOKEN, token),
        wire.message(_EXPIRE_TIME, expire_time),
        wire.content(_REPLICA_ID, receipt.replica_id.encode()),
        wire.number(_ESTIMATED, receipt.estimated_milli_mu),
        wire.number(_QUOTA_LEFT, receipt.quota_left_milli_mu),
    )

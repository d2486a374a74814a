"""Tickets as bytes: what was signed is read back, and nothing else is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.tickets import TOKEN_BYTES_MAX, TicketKey, name_in, replica_key, request_digest
from fairlead.inference.v1 import inference_pb2 as pb

SECRET = b"s" * 32
secrets = st.binary(min_size=32, max_size=32)
names = st.text(max_size=40)


@given(secrets, names, st.binary(max_size=500))
def test_what_is_signed_is_read(secret: bytes, replica_id: str, claims: bytes) -> None:
    """Any claims come back, and the token names its key."""
    key = TicketKey(replica_key(secret, replica_id))
    token = key.seal(claims)
    assert key.unseal(token) == claims
    assert name_in(token) == key.name


@given(st.binary(max_size=300), st.data())
def test_one_changed_bit_is_found(claims: bytes, data: st.DataObject) -> None:
    """Behind the key's name, which is looked up, every bit counts; so does every byte more or less."""
    key = TicketKey(replica_key(SECRET, "r1"))
    token = key.seal(claims)
    bit = data.draw(st.integers(8 * 8, 8 * len(token) - 1))
    changed = bytearray(token)
    changed[bit // 8] ^= 1 << bit % 8
    assert key.unseal(bytes(changed)) is None
    assert key.unseal(token[:-1]) is None
    assert key.unseal(token + b"\0") is None


@given(st.binary(max_size=200))
def test_noise_is_no_ticket(noise: bytes) -> None:
    """Bytes that nobody signed are refused, whatever their length."""
    assert TicketKey(replica_key(SECRET, "r1")).unseal(noise) is None


def test_a_token_over_the_limit_is_not_looked_at() -> None:
    """The limit and one byte more, both signed."""
    key = TicketKey(replica_key(SECRET, "r1"))
    claims = b"x" * (TOKEN_BYTES_MAX - 24)
    assert key.unseal(key.seal(claims)) == claims
    assert key.unseal(key.seal(claims + b"x")) is None


@given(secrets, secrets, names, names)
def test_keys_differ_by_router_and_replica(one: bytes, other: bytes, replica: str, another: str) -> None:
    """A ticket is good where its router's secret and its replica meet, and nowhere else."""
    token = TicketKey(replica_key(one, replica)).seal(b"claims")
    good = (one, replica) == (other, another)
    assert (TicketKey(replica_key(other, another)).unseal(token) == b"claims") is good


def test_the_digest_covers_everything_that_was_sent() -> None:
    """Every field of a request changes it; the way it was written does not."""
    base = pb.GenerateRequest(model="m", prompt="p", sampling=pb.SamplingParameters(max_tokens=4), request_id="i")
    digests = {request_digest(base)}
    for change in (
        {"model": "n"},
        {"prompt": "q"},
        {"session_id": "s"},
        {"priority": pb.PRIORITY_BATCH},
        {"request_id": "j"},
        {"sampling": pb.SamplingParameters(max_tokens=5)},
        {"chat": pb.Chat(messages=[pb.ChatMessage(role="user", content="p")])},
    ):
        changed = pb.GenerateRequest()
        changed.CopyFrom(base)
        changed.MergeFrom(pb.GenerateRequest(**change))
        digests.add(request_digest(changed))
    assert len(digests) == 8
    again = pb.GenerateRequest.FromString(base.SerializeToString())
    assert request_digest(again) == request_digest(base)

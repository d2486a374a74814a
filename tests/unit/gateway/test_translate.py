"""Requests that the gateway writes by hand are what protobuf's class would have written."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from data_plane.gateway import translate
from fairlead.inference.v1 import inference_pb2 as pb

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
SAMPLING = {
    "temperature": FLOATS,
    "top_p": FLOATS,
    "top_k": st.integers(1 - 2**31, 2**31 - 1),
    "seed": st.integers(-(2**63), 2**64 - 1),
    "stop": st.lists(st.text(max_size=5), max_size=3),
    "presence_penalty": FLOATS,
    "frequency_penalty": FLOATS,
    "repetition_penalty": FLOATS,
    "ignore_eos": st.booleans(),
}
TEXT = st.text(max_size=200)
HEADERS = {b"x-fairlead-session": b"of the header", b"idempotency-key": b"once", b"x-fairlead-priority": b" Batch"}


@given(
    sampling=st.fixed_dictionaries({"max_tokens": st.integers(1 - 2**31, 2**31 - 1)}, optional=SAMPLING),
    messages=st.lists(st.tuples(st.sampled_from(["user", "assistant", "robot"]), TEXT), max_size=3),
    model=st.text(max_size=9),
    session=st.text(max_size=9),
    named=st.booleans(),
    more=st.sampled_from([{}, {"user": "me"}, {"n": 1}]),
)
def test_a_chat_is_written_as_protobuf_would(
    sampling: dict[str, Any],
    messages: list[tuple[str, str]],
    model: str,
    session: str,
    named: bool,
    more: dict[str, Any],
) -> None:
    """Whatever is set, at any value that its field can hold, and nothing that is not; headers go before the body."""
    said = [{"role": role, "content": text} for role, text in messages]
    body = {"model": model, "messages": said, "prompt_cache_key": session, **sampling, **more}
    written, _ = translate.chat(json.dumps(body).encode(), HEADERS if named else {})
    expected = pb.GenerateRequest(model=model, session_id=session, chat=pb.Chat(), sampling=_sampling(sampling))
    for role, text in messages:
        expected.chat.messages.add(role=role, content=text)
    if named:
        expected.session_id, expected.request_id = "of the header", "once"
        expected.priority = pb.PRIORITY_BATCH
    assert pb.GenerateRequest.FromString(written) == expected


@given(TEXT, st.booleans())
def test_a_prompt_is_written_as_protobuf_would(prompt: str, listed: bool) -> None:
    """Also one of nothing, which is there all the same; and alone in a list."""
    body = {"model": "m", "prompt": [prompt] if listed else prompt}
    written, _ = translate.completion(json.dumps(body).encode(), {})
    read = pb.GenerateRequest.FromString(written)
    assert read == pb.GenerateRequest(model="m", prompt=prompt, sampling=pb.SamplingParameters())
    assert read.HasField("prompt")


def _sampling(fields: dict[str, Any]) -> pb.SamplingParameters:
    """The same by protobuf's own class."""
    fields = dict(fields)
    fields["ignore_end_token"] = fields.pop("ignore_eos", False)
    if "seed" in fields:
        fields["seed"] %= 2**64
    if fields.get("top_k") in (0, -1):
        del fields["top_k"]
    return pb.SamplingParameters(**fields)

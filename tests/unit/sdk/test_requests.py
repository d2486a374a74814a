"""Requests: what the caller passes becomes what is sent, and mistakes are named."""

from __future__ import annotations

from typing import Any

import pytest

from fairlead import InvalidArgumentError, Message
from fairlead.inference.v1 import inference_pb2
from fairlead.sdk.requests import build_request, deadline_from


def test_everything_given_is_sent() -> None:
    """Every option lands in its field; what is left out stays unset."""
    request = build_request(
        "tiny",
        "Hello",
        None,
        {
            "max_tokens": 7,
            "temperature": 0.0,
            "seed": 3,
            "stop": "END",
            "session": "s1",
            "priority": "batch",
            "request_id": "r1",
            "ignore_end_token": True,
        },
    )
    sampling = inference_pb2.SamplingParameters(
        max_tokens=7, temperature=0.0, seed=3, stop=["END"], ignore_end_token=True
    )
    assert request == inference_pb2.GenerateRequest(
        model="tiny",
        prompt="Hello",
        sampling=sampling,
        session_id="s1",
        priority=inference_pb2.PRIORITY_BATCH,
        request_id="r1",
    )
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")


def test_turns_are_messages_or_mappings() -> None:
    """Both forms of a turn mean the same."""
    request = build_request("tiny", None, [Message("system", "Be brief"), {"role": "user", "content": "Hi"}], {})
    assert [(turn.role, turn.content) for turn in request.chat.messages] == [("system", "Be brief"), ("user", "Hi")]
    assert request.priority == inference_pb2.PRIORITY_INTERACTIVE


def test_every_request_has_its_own_id() -> None:
    """A drawn id names one request, so that retries are executed once."""
    first, second = (build_request("tiny", "x", None, {}).request_id for _ in range(2))
    assert first != second
    assert first


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": "7"}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"temperature": "warm"}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"stop": 7}, "stop"),
        ({"stop": [b"\xff"]}, "stop"),
        ({"priority": "system"}, "priority"),
        ({"session": 7}, "session"),
        ({"request_id": 7}, "request_id"),
    ],
)
def test_a_value_the_wire_cannot_carry_is_named(options: Any, field: str) -> None:
    """The error says which argument is wrong."""
    with pytest.raises(InvalidArgumentError) as raised:
        build_request("tiny", "x", None, options)
    assert raised.value.field == field


@pytest.mark.parametrize("messages", ["Hello", {"role": "user", "content": "x"}, [], [{"role": "user"}], [7]])
def test_a_malformed_conversation_is_refused(messages: Any) -> None:
    """The error names the conversation, and a plain text is pointed to generate()."""
    with pytest.raises(InvalidArgumentError) as raised:
        build_request("tiny", None, messages, {})
    assert raised.value.field.startswith("messages")


def test_a_prompt_never_appears_in_an_error() -> None:
    """Broken text is refused without being quoted."""
    with pytest.raises(InvalidArgumentError) as raised:
        build_request("tiny", "secret \ud800 text", None, {})
    assert raised.value.field == "prompt"
    assert "secret" not in str(raised.value)


def test_an_unknown_option_is_a_type_error() -> None:
    """As with any Python function."""
    with pytest.raises(TypeError, match="max_token'"):
        build_request("tiny", "x", None, {"max_token": 7})  # type: ignore[typeddict-unknown-key]


def test_deadlines() -> None:
    """The request's own deadline wins, None lifts it, and nonsense is refused."""
    assert deadline_from({}, 5.0) == 5.0
    assert deadline_from({"deadline_s": 2}, 5.0) == 2.0
    assert deadline_from({"deadline_s": None}, 5.0) is None
    for bad in (0, -1, float("nan"), "soon", True):
        with pytest.raises(InvalidArgumentError, match="deadline_s"):
            deadline_from({"deadline_s": bad}, None)  # type: ignore[typeddict-item]

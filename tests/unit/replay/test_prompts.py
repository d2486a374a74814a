"""Prompts of recorded lengths, their scaling, and the dealing of requests to tenants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead import InvalidArgumentError, ModelInfo
from fairlead.replay import LengthScale, PromptMaker, TraceRequest, choose_scale
from fairlead.replay.deal import deal
from fairlead.replay.prompts import describe_scale

TINY = ModelInfo("tiny", context_tokens=256, output_tokens_max=64, bytes_per_token=4.0, create_time_s=0)

requests_of_any_length = st.lists(
    st.builds(TraceRequest, st.just(0.0), st.integers(1, 10_000_000), st.integers(1, 10_000_000)), min_size=1
)


@given(requests_of_any_length, st.none() | st.floats(0.001, 10))
def test_scaled_lengths_always_fit(requests: list[TraceRequest], factor: float | None) -> None:
    """Whatever was recorded, prompt and answer fit the context and neither is empty."""
    scale = choose_scale(requests, TINY, factor)
    for request in requests:
        lengths = scale.apply(request)
        assert lengths.input_tokens >= 1
        assert 1 <= lengths.output_tokens <= TINY.output_tokens_max
        assert lengths.input_tokens + lengths.output_tokens <= TINY.context_tokens


def test_the_chosen_factor_lets_nearly_all_fit() -> None:
    """At least 95 % of the requests keep their shape, and lengths that fit are left alone."""
    requests = [TraceRequest(0.0, tokens, tokens // 5 + 1) for tokens in range(1, 2001)]
    scale = choose_scale(requests, TINY, None)
    assert sum(scale.apply(request).cut for request in requests) <= 0.05 * len(requests)
    assert choose_scale([TraceRequest(0.0, 10, 10)], TINY, None).factor == 1.0


def test_the_scale_says_what_it_did() -> None:
    """A reader of the report learns the factor, the context and how many were cut."""
    scale = LengthScale(0.05, 256, 64)
    said = describe_scale(scale, [TraceRequest(0.0, 1000, 100), TraceRequest(0.0, 100_000, 100)], TINY)
    assert "times 0.05 for tiny (context 256 tokens); 1 of 2 requests were cut" in said
    with pytest.raises(InvalidArgumentError, match="above 0"):
        choose_scale([TraceRequest(0.0, 1, 1)], TINY, 0.0)


@given(st.integers(1, 3000), st.floats(0.5, 8))
def test_a_prompt_has_the_length_asked_for(tokens: int, bytes_per_token: float) -> None:
    """Bytes are tokens times the model's bytes per token."""
    prompt = PromptMaker(bytes_per_token, 1.0).prompt(0, TraceRequest(0.0, tokens, 1), tokens)
    assert len(prompt.encode()) == max(1, round(tokens * bytes_per_token))


def test_prompts_share_exactly_the_recorded_prefix() -> None:
    """Equal leading blocks are equal text; the first other block ends the likeness; the same request stays the same."""
    maker = PromptMaker(4.0, 0.1)
    block = round(512 * 0.1 * 4.0)
    first = maker.prompt(0, TraceRequest(0.0, 1500, 1, prefix_blocks=(0, 1, 2)), 150)
    second = maker.prompt(1, TraceRequest(0.0, 1500, 1, prefix_blocks=(0, 1, 9)), 150)
    assert first[: 2 * block] == second[: 2 * block]
    assert first[2 * block :] != second[2 * block :]
    assert first == maker.prompt(0, TraceRequest(0.0, 1500, 1, prefix_blocks=(0, 1, 2)), 150)
    plain = [maker.prompt(number, TraceRequest(0.0, 100, 1), 100) for number in (0, 1)]
    assert plain[0][:40] != plain[1][:40]


def test_clients_stay_whole_and_loads_stay_even() -> None:
    """One client's requests all go to one tenant, and no tenant is left without."""
    requests = [TraceRequest(0.0, 1, 1, client=str(number % 27)) for number in range(1500)]
    places = deal(requests, [1.0, 1.0, 2.0])
    homes = {request.client: place for request, place in zip(requests, places, strict=True)}
    assert all(homes[request.client] == place for request, place in zip(requests, places, strict=True))
    shares = [places.count(place) / len(places) for place in range(3)]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.05)


def test_requests_are_dealt_by_weight_and_always_alike() -> None:
    """Without clients the shares follow the weights, and the deal is the same every time."""
    requests = [TraceRequest(0.0, 1, 1)] * 4000
    places = deal(requests, [1.0, 3.0])
    assert places.count(1) / len(places) == pytest.approx(0.75, abs=0.03)
    assert places == deal(requests, [1.0, 3.0])


def test_conversations_stay_whole() -> None:
    """Requests that share a conversation's prefix go to one tenant, or their prefix would be worth nothing."""
    requests = [TraceRequest(0.0, 2000, 1, prefix_blocks=(0, number % 10, 100 + number)) for number in range(200)]
    places = deal(requests, [1.0, 1.0])
    assert {len({places[at] for at in range(talk, 200, 10)}) for talk in range(10)} == {1}
    assert set(places) == {0, 1}


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0]])
def test_nobody_to_deal_to(weights: list[float]) -> None:
    """No target, or one without a share, is a mistake."""
    with pytest.raises(InvalidArgumentError, match="weight"):
        deal([TraceRequest(0.0, 1, 1)], weights)

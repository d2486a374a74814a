"""Traffic classes as pairs of lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.calibration.traffic import CLASSES, TrafficClass, cut

classes = st.sampled_from(CLASSES)


@given(classes, st.integers(1, 200), st.integers(2, 200_000))
def test_pairs_fit_every_context(traffic: TrafficClass, count: int, context_tokens: int) -> None:
    """Proves that a class has as many pairs as were asked for, none longer than the context, none without a token."""
    pairs = traffic.pairs(count, context_tokens)
    assert len(pairs) == count
    assert all(read >= 1 and made >= 1 and read + made <= context_tokens for read, made in pairs)


@pytest.mark.parametrize("traffic", CLASSES, ids=lambda each: each.name)
def test_pairs_have_the_quantiles_of_their_class(traffic: TrafficClass) -> None:
    """Proves that the pairs spread over both distributions as the recorded quantiles say."""
    pairs = traffic.pairs(400, 1_000_000)
    for values, quantiles in zip(zip(*pairs, strict=True), (traffic.input_tokens, traffic.output_tokens), strict=True):
        for share, quantile in zip((0.05, 0.25, 0.5, 0.75, 0.95), quantiles[1:6], strict=True):
            below = sum(value <= quantile for value in values) / len(values)
            assert below >= share - 0.01
            # Several ranks may share one length.
            assert sum(value < quantile for value in values) / len(values) <= share + 0.01


@pytest.mark.parametrize("traffic", CLASSES, ids=lambda each: each.name)
def test_prompts_and_answers_are_not_related(traffic: TrafficClass) -> None:
    """Proves that long prompts come with long and with short answers, as in the recordings."""
    count = 64
    ranks = [(index, (index * 0.6180339887498949 + 0.5) % 1.0) for index in range(count)]
    assert len({round(rank, 6) for _, rank in ranks}) == count
    pairs = traffic.pairs(count, 1_000_000)
    longest = sorted(pairs)[count // 2 :]
    median = sorted(made for _, made in pairs)[count // 2]
    assert 0.3 <= sum(made >= median for _, made in longest) / len(longest) <= 0.7


def test_quantiles_between_the_recorded_ones_are_on_lines() -> None:
    """Proves the interpolation on worked numbers, the ends included."""
    traffic = TrafficClass("made up", (10, 20, 40, 80, 160, 200, 300, 1_000), (1, 1, 1, 1, 1, 1, 1, 1))
    assert [traffic.pair(share, 0.0)[0] for share in (0.0, 0.025, 0.15, 0.5, 0.625, 1.0)] == [10, 15, 30, 80, 120, 1000]


def test_long_pairs_are_cut() -> None:
    """Proves that an answer keeps at most half of a context and the prompt gets the rest."""
    assert cut((100, 50), 1_000) == (100, 50)
    assert cut((5_000, 50), 1_000) == (950, 50)
    assert cut((5_000, 900), 1_000) == (500, 500)
    assert cut((5, 5), 2) == (1, 1)

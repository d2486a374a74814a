"""Prompts of a wanted length on an engine whose tokenizer nobody knows, and loads driven over a real dispatcher."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.agent.prompts import PROBE_WORDS, WordLengths, random_words


@given(
    frame=st.integers(0, 40),
    per_word=st.floats(0.3, 6.0),
    wanted=st.integers(100, 100_000),
)
def test_lengths_are_met_after_two_probes(frame: int, per_word: float, wanted: int) -> None:
    """Proves that two counted prompts suffice to meet a length within a few percent, whatever the tokenizer."""

    def count(words: int) -> int:
        return frame + round(words * per_word)

    lengths = WordLengths()
    lengths.probed((count(PROBE_WORDS[0]), count(PROBE_WORDS[1])))
    words = lengths.words_for(wanted)
    tolerance = 0.05 * wanted + 2 * per_word + wanted / per_word / 40  # the probes' own rounding
    assert count(words) == pytest.approx(wanted, abs=tolerance)
    assert lengths.tokens_of(words) == pytest.approx(wanted, abs=2 * per_word + 1)


def test_lengths_are_learned_further() -> None:
    """Proves that long prompts correct what short ones said, and that tiny ones change nothing."""
    lengths = WordLengths()
    lengths.probed((8, 48))
    for _ in range(60):
        lengths.counted(1_000, 1_500)
        lengths.counted(3, 300)
    assert lengths.tokens_of(1_000) == pytest.approx(1_500, rel=0.01)
    assert lengths.words_for(1) == 1


def test_prompts_differ_from_the_first_words_on() -> None:
    """Proves that no two prompts of one load share the block of words a prefix cache could keep."""
    draw = random.Random(1)
    heads = {random_words(200, draw)[:40] for _ in range(2_000)}
    assert len(heads) == 2_000
    assert random_words(5, random.Random(3)) == random_words(5, random.Random(3))
    assert len(random_words(7, draw).split()) == 7

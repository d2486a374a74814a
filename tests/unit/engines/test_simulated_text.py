from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from engines.engine import Finish, Prompt
from engines.simulated.text import MEAN_OUTPUT_TOKENS, OutputText, render


@given(st.text(max_size=200), st.integers(1, 400), st.integers(0, 2**64 - 1), st.data())
def test_broken_stream_continues_with_the_same_text(
    prompt: str, max_tokens: int, seed: int, data: st.DataObject
) -> None:
    """Proves that prompt plus what was delivered, sent elsewhere, gives exactly the rest: same text, same end."""
    whole = OutputText(prompt, max_tokens=max_tokens, seed=seed)
    broken = OutputText(prompt, max_tokens=max_tokens, seed=seed)
    delivered_tokens = data.draw(st.integers(0, whole.tokens - 1))
    delivered = broken.take(delivered_tokens)
    rest = OutputText(prompt + delivered, max_tokens=max_tokens - delivered_tokens, seed=seed)
    assert delivered_tokens + rest.tokens == whole.tokens
    assert rest.finish == whole.finish
    assert delivered + rest.take(rest.tokens) == whole.take(whole.tokens)


def test_continued_conversation_is_left_open() -> None:
    """Proves that a conversation ending in the assistant's words is continued, not answered."""
    turns = (("system", "be brief"), ("user", "hello"))
    prompt = Prompt(messages=turns)
    whole = OutputText(render(prompt), max_tokens=20, ignore_end_token=True)
    said = OutputText(render(prompt), max_tokens=20, ignore_end_token=True).take(7)
    continued = Prompt(messages=(*turns, ("assistant", said)))
    rest = OutputText(render(continued), max_tokens=13, ignore_end_token=True)
    assert said + rest.take(13) == whole.take(20)


def test_lengths_average_to_the_mean_and_keep_the_limit() -> None:
    """Proves that answers end by themselves around the stated mean, never beyond max_tokens, and say why."""
    outputs = [OutputText(f"prompt {index}", max_tokens=100_000) for index in range(2_000)]
    assert abs(statistics.mean(output.tokens for output in outputs) / MEAN_OUTPUT_TOKENS - 1) < 0.1
    assert {output.finish for output in outputs} == {Finish.STOP}
    short = OutputText("prompt", max_tokens=5, ignore_end_token=True)
    assert (short.tokens, short.finish) == (5, Finish.LENGTH)


def test_seed_draws_another_answer_and_repeats_it() -> None:
    """Proves that a seed changes the text and the same seed gives the same."""
    texts = [OutputText("prompt", max_tokens=50, seed=seed, ignore_end_token=True).take(50) for seed in (0, 7, 7)]
    assert texts[0] != texts[1] == texts[2]


@given(st.integers(1, 60), st.integers(1, 4))
def test_answer_ends_before_a_stop_text(at: int, words: int) -> None:
    """Proves that nothing of a stop text, not even one that spans tokens, is ever said."""
    full = OutputText("prompt", max_tokens=80, ignore_end_token=True).take(80)
    stop = " ".join(full.split()[at : at + words])
    output = OutputText("prompt", max_tokens=80, ignore_end_token=True, stop=(stop, "never said"))
    text = "".join(output.take(1) for _ in range(output.tokens))
    assert output.finish is Finish.STOP
    assert text == full[: full.index(stop)]

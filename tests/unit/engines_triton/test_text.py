"""Text as it comes out of tokens: whole characters only, and nothing of a stop sequence."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.triton.backend.text import StopFilter, TextStream, take_all


def decode(windows: list[list[int]]) -> list[str]:
    """A detokenizer whose tokens are bytes, and above 255 pairs of bytes."""
    return [
        b"".join(bytes([token]) if token < 256 else bytes([token - 256, token - 256]) for token in window).decode(
            errors="replace"
        )
        for window in windows
    ]


def stream(steps: list[list[int]]) -> list[str]:
    text = TextStream()
    out = []
    for number, tokens in enumerate(steps):
        text.push(tokens)
        out += take_all([(text, number == len(steps) - 1)], decode)
    return out


def test_a_character_over_several_tokens_comes_out_whole() -> None:
    """Shows that the bytes of one character are held until it is complete."""
    assert stream([[byte] for byte in "aé😀".encode()]) == ["a", "", "é", "", "", "", "😀"]


def test_an_incomplete_character_at_the_end_becomes_a_replacement_character() -> None:
    """Shows that the last token's text is never lost."""
    assert stream([[0x61], [0xF0]]) == ["a", "\ufffd"]


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 511), max_size=5), min_size=1, max_size=40))
def test_streamed_text_equals_decoding_all_tokens_at_once(steps: list[list[int]]) -> None:
    """Proves for any bytes in any portions that the stream is the whole text, and valid UTF-8 in every part."""
    parts = stream(steps)
    assert "".join(parts) == decode([[token for tokens in steps for token in tokens]])[0]
    for part in parts:
        part.encode()


@settings(max_examples=50)
@given(st.text(alphabet="ab😀é€", max_size=60))
def test_valid_text_never_shows_a_replacement_character(text: str) -> None:
    """Proves that text which is valid as a whole is valid in every part."""
    parts = stream([[byte] for byte in text.encode()] or [[]])
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    found = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(found)], True) if found else (text, False)


@settings(max_examples=50)
@given(
    st.lists(st.text(alphabet="abc", max_size=4), max_size=20),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_filter_equals_cutting_the_whole_text(parts: list[str], stops: list[str]) -> None:
    """Proves that text is cut exactly where the first stop sequence completes, whatever the portions are."""
    stop_filter = StopFilter(stops)
    shown, seen = "", ""
    for part in parts:
        seen += part
        shown += stop_filter.push(part)
        if stop_filter.stopped:
            break
        assert len(seen) - len(shown) < max([len(stop) for stop in stops], default=1), "holds back too much"
    expected, stopped = naive(seen, stops)
    assert stop_filter.stopped == stopped
    assert shown + ("" if stopped else stop_filter.flush()) == expected

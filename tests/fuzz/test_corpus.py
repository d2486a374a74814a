"""Replays what fuzzing has found worth keeping, in seconds and without atheris."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parent / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_kept(target: str) -> None:
    kept = sorted((CORPUS / target).iterdir())
    assert kept, f"make fuzz TARGET={target} KEEP=1"
    for path in kept:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            error.add_note(str(path))
            raise


def test_there_is_no_corpus_of_nothing() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)

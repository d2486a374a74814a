"""What the command advises where a calibration was not published."""

from __future__ import annotations

import inspect

import pytest

from fairlead.cli.remedies import remedies
from model_units.calibration import analysis
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command


@pytest.mark.parametrize(
    ("objection", "said"),
    [
        ("the hold-out error is 9.0%, more than 5.0%", "--replica"),
        ("the capacity for chat is 9.0% off, more than 5.0%", "--replica"),
        ("the measurement is not finished", "--budget"),
        ("not tested on chat, code: allow more replica time", "--budget"),
        ("could not be measured: 100 + 50", "--budget"),
        ("not even one request at a time keeps the objective at most lengths: allow more time per token", "--tpot-ms"),
        ("the replica changed its speed meanwhile: an idle step takes 1.20 times as long as before", "the machine"),
        ("the time to first token decides at most lengths", "--ttft-ms"),
    ],
)
def test_each_objection_has_its_own_remedy(objection: str, said: str) -> None:
    """One objection, one remedy, and it is the one that helps against it."""
    (remedy,) = remedies(f"not published: {objection}")
    assert said in remedy


def test_objections_are_worded_as_the_core_words_them() -> None:
    """What remedies look for is found in what the measuring core says."""
    source = inspect.getsource(analysis)
    for phrase in ("hold-out error", "the capacity for", "not finished", "not tested on", "could not be measured",
                   "keeps the objective", "changed its speed"):  # fmt: skip
        assert phrase in source, phrase


def test_remedies_are_said_once_and_none_is_made_up() -> None:
    """Two objections of one cause share a remedy; an unknown one has none."""
    both = "not published: the hold-out error is 9%; the capacity for chat is 8% off; not tested on code"
    assert len(remedies(both)) == 2
    assert remedies("others keep changing the model at the same time: publish it by hand") == ()
    assert remedies("") == ()


def test_a_refused_calibration_is_advised_by_its_objections(command: Command, platform: FakePlatform) -> None:
    """The note on standard error holds what helps against this refusal and nothing that does not."""
    refused = platform.control.calibration.add_refused("tiny")
    refused.detail = "not published: the hold-out error is 9.0%, more than 5.0%"
    said = command.run("calibrations", "show", "tiny").stderr
    assert "quiet host" in said
    assert "--budget" not in said
    refused.detail = "not published: not tested on code: allow more replica time"
    said = command.run("calibrations", "show", "tiny").stderr
    assert "a larger --budget may help; to publish it all the same: fairlead calibrations publish tiny@1" in said
    assert "quiet host" not in said

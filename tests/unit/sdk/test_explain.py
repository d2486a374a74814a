"""Explaining a request: every router is asked, and what they say is put into words."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from fairlead import (
    Client,
    DeadlineExceededError,
    FairleadError,
    InvalidArgumentError,
    NotFoundError,
    Outcome,
    Reason,
    UnauthenticatedError,
    UnavailableError,
)
from fairlead.inference.v1 import decision_pb2, inference_pb2
from fairlead.sdk.decisions import explanation_from
from fairlead.sdk.explaining import attempt_line, headline, span, why
from fairlead.sdk.transport import Outgoing
from tests.support.decisions import bucket, completed, duration, refused

NOTHING = NotFoundError("q is not among the newest 4,096 requests")


class Routers:
    """Answers try after try."""

    def __init__(self, *answers: FairleadError | decision_pb2.Decision) -> None:
        self._answers = deque(answers)
        self.sent: list[Outgoing] = []

    def unary(self, outgoing: Outgoing) -> Any:
        self.sent.append(outgoing)
        answer = self._answers.popleft()
        if isinstance(answer, FairleadError):
            raise answer
        return decision_pb2.GetDecisionResponse(decisions=[answer])

    def stream(self, outgoing: Outgoing) -> Any:
        raise AssertionError("nothing is streamed")

    def close(self) -> None:
        pass


def client(routers: Routers) -> Client:
    return Client(["a:1", "b:1", "c:1"], api_key="fl-key", transport=routers)


def test_all_routers_are_asked_once_each() -> None:
    """Tries under one id may have gone to any router: all answers count, the newest first, the silent are named."""
    routers = Routers(refused("q", arrive_s=100), UnavailableError("gone"), completed("q", arrive_s=200))
    explanation = client(routers).explain("q")
    assert [outgoing.address for outgoing in routers.sent] == ["a:1", "b:1", "c:1"]
    assert {outgoing.method for outgoing in routers.sent} == {"GetDecision"}
    assert routers.sent[0].metadata == (("authorization", "Bearer fl-key"),)
    assert [decision.outcome for decision in explanation.decisions] == [Outcome.COMPLETED, Outcome.REFUSED]
    assert explanation.silent_routers == ("b:1",)
    assert explanation.text().endswith("b:1 could not be asked and may know more")


def test_nobody_remembering_is_not_nobody_answering() -> None:
    """Not found says who was silent; an unreachable platform and a refused key say what they are."""
    with pytest.raises(NotFoundError, match="newest 4,096 requests; b:1 could not be asked"):
        client(Routers(NOTHING, UnavailableError("gone"), NOTHING)).explain("q")
    with pytest.raises(UnavailableError, match="cannot reach a router at a:1"):
        gone = (UnavailableError("gone", reason=Reason.UNSPECIFIED) for _ in range(3))
        client(Routers(*gone)).explain("q")
    with pytest.raises(DeadlineExceededError, match="a:1 did not answer within 5 s"):
        client(Routers(*(DeadlineExceededError("late", reason=Reason.UNSPECIFIED) for _ in range(3)))).explain("q")
    with pytest.raises(UnauthenticatedError, match="unknown"):
        client(Routers(*(UnauthenticatedError("this key is unknown") for _ in range(3)))).explain("q")


def test_what_two_routers_tell_is_told_once() -> None:
    """Routers ask each other too: the same decision from two of them is one."""
    explanation = client(Routers(refused("q"), refused("q"), completed("q", arrive_s=200))).explain("q")
    assert [decision.outcome for decision in explanation.decisions] == [Outcome.REFUSED, Outcome.COMPLETED]


def test_an_empty_id_is_refused_before_anything_is_sent() -> None:
    """The mistake is named."""
    routers = Routers()
    with pytest.raises(InvalidArgumentError, match="request_id"):
        client(routers).explain("")
    assert not routers.sent


def reason_of(decision: decision_pb2.Decision) -> str:
    return " ".join(why(explanation_from([decision], []).decisions[0]))


def test_each_refusal_by_quota_says_its_numbers() -> None:
    """Used up, in debt, held, too small and not granted are told apart, each with what it was decided by."""
    used_up = refused("q")
    assert "needs 3.200 MU, and 1.100 MU were left" in reason_of(used_up)
    assert "come back in 6.3 s" in reason_of(used_up)
    used_up.bucket.CopyFrom(bucket(level_milli_mu=-400))
    assert "0.400 MU in debt" in reason_of(used_up)
    used_up.bucket.CopyFrom(decision_pb2.BucketState())
    assert "no quota is granted to alpha on tiny" in reason_of(used_up)
    held = refused("q")
    held.reason = "QUOTA_HELD"
    assert "2 requests in flight held 2.500 MU" in reason_of(held)
    held.bucket.open_holds = 1
    assert "1 request in flight" in reason_of(held)
    too_small = refused("q")
    too_small.reason = "QUOTA_TOO_SMALL"
    assert "saves up 10.000 MU at most" in reason_of(too_small)
    other = refused("q")
    other.reason, other.message = "NO_REPLICA", "no replica of tiny can take requests"
    assert reason_of(other).startswith("no replica of tiny can take requests")


def test_whole_text_holds_every_number_of_a_completed_request() -> None:
    """Units estimated, held and charged, the quota then, both tries with their scores and how they ended."""
    text = explanation_from([completed("q")], []).text()
    for expected in (
        "q was answered in 2.31 s",
        "alpha on tiny · interactive · session chat-7",
        "60.000 MU/min over all routers, of which this router's lease was 20.000 MU/min",
        "estimated 3.200 MU = prefill 0.200 (120 tokens in) + decode 3.000 (300 tokens out)",
        "held      3.900 MU: extended",
        "charged   3.550 MU = prefill 0.150 (128 tokens in, 64 of them cached) + decode 3.400 (340 tokens out)",
        "1. tiny-r2 after 1.2 ms: the session's own replica, of 3 weighed; no token came, failed: REPLICA_LOST",
        "2. tiny-r1 after 400 ms: the lowest score of 3 weighed; first token 120 ms later",
        "tiny-r1 240 ms, tiny-r3 750 ms, tiny-r2 1.2 s",
    ):
        assert expected in text


def test_a_request_in_flight_is_still_running() -> None:
    """Nothing of an end is claimed; the safe rate, a panic, a wait and a repetition are said."""
    running = completed("q")
    for field in ("duration", "outcome", "settled_usage", "settled_prefill_milli_mu", "settled_decode_milli_mu"):
        running.ClearField(field)  # type: ignore[arg-type]  # the stubs want literals
    del running.attempts[1:]
    running.attempts[0].failure_reason, running.attempts[0].sticky, running.attempts[0].panic = "", False, True
    running.bucket.expired = True
    running.wait.CopyFrom(duration(200))
    running.priority = inference_pb2.PRIORITY_BATCH
    explanation = explanation_from([running], [])
    (decision,) = explanation.decisions
    assert headline(decision) == "q is still running"
    assert "charged" not in explanation.text()
    assert "3 min 20 s in the queue of batch requests" in explanation.text()
    assert "its safe rate, as the rate limiter had not been heard lately" in explanation.text()
    assert "health was ignored, as too few replicas had it; no token yet" in attempt_line(decision.attempts[0], 1)
    running.replayed = True
    assert "nothing was charged" in headline(explanation_from([running], []).decisions[0])


def test_a_try_says_which_rule_chose_and_by_what() -> None:
    """Policy, cached prefix, wait for room and what was expected are said; counts are not shown as times."""
    message = completed("q")
    attempt = message.attempts[0]
    attempt.policy, attempt.sticky, attempt.failure_reason = "late_binding", True, ""
    attempt.candidates[2].cached_tokens = 1_536
    attempt.wait.CopyFrom(duration(0.12))
    attempt.expected_first_token.CopyFrom(duration(0.3))

    def told() -> str:
        return attempt_line(explanation_from([message], []).decisions[0].attempts[0], 1)

    assert told().endswith(
        "late_binding: 1,536 tokens of the prompt are in its cache, of 3 weighed; it waited 120 ms for a replica with "
        "room; no token yet, expected 300 ms"
    )
    attempt.sticky = False
    assert "the lowest score of 3 weighed, with 1,536 tokens of the prompt in its cache" in told()
    attempt.policy = "least_requests"
    assert "the fewest requests of 3 weighed" in told()
    assert "tiny-r2 0.02" in explanation_from([message], []).text()
    del attempt.candidates[:]
    attempt.candidate_count = 1
    assert "least_requests: the only one" in told()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 µs"), (0.0004, "400 µs"), (0.0123, "12.3 ms"), (2.314, "2.31 s"), (3725, "62 min 5 s")],
)
def test_times_are_shown_with_about_three_digits(seconds: float, shown: str) -> None:
    """From microseconds to hours."""
    assert span(seconds) == shown

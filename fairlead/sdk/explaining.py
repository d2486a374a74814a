"""Explains decisions in words: the same sentences in the SDK and on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fairlead.errors import Reason
from fairlead.sdk.decisions import Attempt, Bucket, CandidateScore, Decision, Explanation, Outcome
from fairlead.sdk.results import Usage

_ENDINGS = {
    Outcome.IN_FLIGHT: "is still running",
    Outcome.COMPLETED: "was answered",
    Outcome.FAILED: "failed",
    Outcome.REFUSED: "was refused",
    Outcome.CANCELLED: "was cancelled by its client",
}

# Policies whose scores are no times.
_COUNTING = frozenset({"round_robin", "two_choices", "least_requests", "prefix_match"})


class Section(NamedTuple):
    """A part of an explanation."""

    title: str
    """One word."""
    lines: Sequence[str]
    """Sentences and figures."""


def headline(decision: Decision) -> str:
    """Says how a request ended, in a few words."""
    ending = _ENDINGS[decision.outcome]
    if decision.replayed:
        ending = "was answered again with an earlier answer; nothing was charged"
    elif decision.outcome is Outcome.COMPLETED and decision.duration_s is not None:
        ending += f" in {span(decision.duration_s)}"
    elif decision.duration_s is not None:
        ending += f" after {span(decision.duration_s)}"
    return f"{decision.request_id} {ending}{f': {decision.reason}' if decision.reason else ''}"


def whence(decision: Decision) -> str:
    """Says who asked for what, where and when."""
    who = f"{decision.tenant_id or 'an unknown key'} on {decision.model_id or 'an unknown model'}"
    when = decision.arrive_time.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
    session = f" · session {decision.session_id}" if decision.session_id else ""
    return f"{who} · {decision.priority}{session} · {when} · {decision.router_id}"


def sections(decision: Decision) -> Iterator[Section]:
    """Explains everything but the tries: why it ended so, the quota, the units, the wait.

    Args:
        decision: Of one router.
    """
    if decision.reason or decision.message:
        yield Section("why", why(decision))
    if decision.bucket is not None:
        yield Section("quota", quota(decision.bucket, refused=decision.outcome is Outcome.REFUSED))
    if decision.estimated_milli_mu:
        yield Section("units", units(decision))
    if decision.wait_s is not None:
        where = (
            "queue of batch requests, for quota" if decision.priority == "batch" else "router, for a replica with room"
        )
        yield Section("wait", [f"{span(decision.wait_s)} in the {where}"])


def why(decision: Decision) -> list[str]:
    """Says why a request was not answered, with the numbers that decided."""
    needs, bucket = f"The request needs {mu(decision.estimated_milli_mu)} MU", decision.bucket
    lines = [decision.message] if decision.message else []
    if bucket is not None:
        left = (
            f"{mu(bucket.level_milli_mu)} MU were left"
            if bucket.level_milli_mu >= 0
            else f"the quota was {mu(-bucket.level_milli_mu)} MU in debt"
        )
        match decision.reason:
            case Reason.QUOTA_USED_UP if bucket.burst_milli_mu == 0:
                lines = [f"{needs}, and no quota is granted to {decision.tenant_id} on {decision.model_id} at present."]
            case Reason.QUOTA_USED_UP:
                lines = [f"{needs}, and {left}: the quota is used up and refills with time."]
            case Reason.QUOTA_HELD:
                lines = [
                    f"{needs}, and {left}: {_requests(bucket.open_holds)} in flight held "
                    f"{mu(bucket.held_milli_mu)} MU. What they do not use comes back when they end."
                ]
            case Reason.QUOTA_TOO_SMALL:
                lines = [
                    f"{needs}, and this router's lease saves up {mu(bucket.burst_milli_mu)} MU at most: waiting "
                    "does not help. Ask for fewer tokens, or for more quota."
                ]
    if decision.retry_delay_s is not None:
        lines.append(f"The client was told to come back in {span(decision.retry_delay_s)}.")
    return lines


def quota(bucket: Bucket, *, refused: bool) -> list[str]:
    """Says what the tenant's quota and this router's lease were at that moment.

    Args:
        bucket: Then.
        refused: The request was not admitted, so that what was left is said with the reason.
    """
    lease = "its safe rate, as the rate limiter had not been heard lately," if bucket.expired else "this router's lease"
    lines = [
        f"{mu(bucket.quota_milli_mu_per_minute)} MU/min over all routers, of which {lease} was "
        f"{mu(bucket.rate_milli_mu_per_minute)} MU/min, saving up {mu(bucket.burst_milli_mu)} MU at most"
    ]
    if not refused:
        lines.append(
            f"{mu(bucket.level_milli_mu)} MU could be held, {mu(bucket.held_milli_mu)} MU were held by "
            f"{_requests(bucket.open_holds)} in flight"
        )
    return lines


def units(decision: Decision) -> list[str]:
    """Says what was estimated, held and charged, in model units and tokens."""
    estimate = _parts(decision.estimated_prefill_milli_mu, decision.estimated_decode_milli_mu, decision.estimated_usage)
    profile = f", by cost profile {decision.profile_id}" if decision.profile_id else ""
    lines = [f"estimated {estimate}{profile}"]
    if decision.held_milli_mu:
        more = decision.held_milli_mu > decision.estimated_milli_mu
        extended = ": extended, as the answer outran its estimate" if more else ""
        lines.append(f"held      {mu(decision.held_milli_mu)} MU{extended}")
    if decision.settled_milli_mu or decision.outcome is Outcome.COMPLETED:
        charge = _parts(decision.settled_prefill_milli_mu, decision.settled_decode_milli_mu, decision.settled_usage)
        share = f", {decision.settled_milli_mu / decision.estimated_milli_mu:.0%} of the estimate"
        lines.append(f"charged   {charge}{share}")
    elif decision.outcome is not Outcome.IN_FLIGHT:
        lines.append("charged   nothing")
    return lines


def attempt_line(attempt: Attempt, number: int) -> str:
    """Says which replica a try went to, why, and what came of it.

    Args:
        attempt: The try.
        number: 1 for the first.
    """
    chosen = f"{attempt.policy}: {choice(attempt)}" if attempt.policy else choice(attempt)
    if attempt.panic:
        chosen += "; health was ignored, as too few replicas had it"
    if attempt.wait_s is not None:
        chosen += f"; it waited {span(attempt.wait_s)} for a replica with room"
    came = "no token came" if attempt.failure_reason else "no token yet"
    if attempt.first_token_s is not None:
        came = f"first token {span(attempt.first_token_s)} later"
    if attempt.expected_first_token_s is not None:
        came += f", expected {span(attempt.expected_first_token_s)}"
    failed = f", failed: {attempt.failure_reason}" if attempt.failure_reason else ""
    return f"{number}. {attempt.replica_id} after {span(attempt.start_s)}: {chosen}; {came}{failed}"


def choice(attempt: Attempt) -> str:
    """Says why a try went to its replica.

    Args:
        attempt: The try.
    """
    if attempt.candidate_count <= 1:
        return "the only one"
    weighed = f"of {attempt.candidate_count} weighed"
    won = next((each for each in attempt.candidates if each.replica_id == attempt.replica_id), None)
    cached = won.cached_tokens if won is not None else 0
    if attempt.sticky and cached:
        return f"{cached:,} tokens of the prompt are in its cache, {weighed}"
    if attempt.sticky:
        return f"the session's own replica, {weighed}"
    match attempt.policy:
        case "round_robin":
            return f"the next in turn {weighed}"
        case "two_choices":
            return f"the less busy of two at random {weighed}"
        case "least_requests":
            return f"the fewest requests {weighed}"
        case "least_cost":
            return f"the least work left {weighed}"
        case "prefix_match":
            return f"the fewest requests {weighed}, as no cached prefix was long enough or loads were too uneven"
    if cached:
        return f"the lowest score {weighed}, with {cached:,} tokens of the prompt in its cache"
    return f"the lowest score {weighed}"


def score(attempt: Attempt, candidate: CandidateScore) -> str:
    """Shows a score: as a time where the policy weighs by that, else as the number that it counts.

    Args:
        attempt: The try.
        candidate: One of its candidates.
    """
    return f"{candidate.score:g}" if attempt.policy in _COUNTING else span(candidate.score * 60)


def text_of(explanation: Explanation) -> str:
    """Explains a request in lines of plain text.

    Args:
        explanation: Of one request.
    """
    lines: list[str] = []
    for decision in explanation.decisions:
        lines += ["", headline(decision), f"  {whence(decision)}"]
        for title, sentences in sections(decision):
            lines += [f"  {title if not number else '':<6} {line}" for number, line in enumerate(sentences)]
        for number, attempt in enumerate(decision.attempts, 1):
            lines.append(f"  {'tries' if number == 1 else '':<6} {attempt_line(attempt, number)}")
            if len(attempt.candidates) > 1:
                scores = ", ".join(f"{each.replica_id} {score(attempt, each)}" for each in attempt.candidates)
                lines.append(f"            scores: {scores}")
    if explanation.silent_routers:
        lines += ["", silence(explanation.silent_routers)]
    return "\n".join(lines[1:])


def silence(routers: Sequence[str]) -> str:
    """Says that some routers could not be asked."""
    return f"{', '.join(routers)} could not be asked and may know more"


def mu(milli_mu: int) -> str:
    """Shows milli-MU as MU, to the last digit."""
    return f"{milli_mu / 1000:,.3f}"


def span(seconds: float) -> str:
    """Shows a time from microseconds to hours with about three digits."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _parts(prefill_milli_mu: int, decode_milli_mu: int, usage: Usage) -> str:
    cached = f", {usage.cached_input_tokens:,} of them cached" if usage.cached_input_tokens else ""
    prefill = f"prefill {mu(prefill_milli_mu)} ({usage.input_tokens:,} tokens in{cached})"
    decode = f"decode {mu(decode_milli_mu)} ({usage.output_tokens:,} tokens out)"
    return f"{mu(prefill_milli_mu + decode_milli_mu)} MU = {prefill} + {decode}"


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"

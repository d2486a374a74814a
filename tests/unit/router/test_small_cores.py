"""The smaller cores: keys, pricing, demand, the retry budget, repeated ids, the batch queue, continuation, limits."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.router.core import pricing
from data_plane.router.core.accounts import Accounts, Histogram, Outcome
from data_plane.router.core.continuation import Replay
from data_plane.router.core.decay import DecayingSum
from data_plane.router.core.holds import BucketKey
from data_plane.router.core.idempotency import IdempotencyWindow
from data_plane.router.core.keys import Verified, authenticate, key_id_of
from data_plane.router.core.pricing import Pricing
from data_plane.router.core.retry import RetryBudget
from data_plane.router.core.validate import check
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import (
    ConflictError,
    FairleadError,
    InvalidArgumentError,
    PermissionDeniedError,
    Reason,
    UnauthenticatedError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.length import OutputLengthEstimator
from model_units.profiles import built_in_profiles
from model_units.text import BytesPerToken
from tests.support.router_lab import KEY, PEPPER, TENANT, api_key

SECOND = 1_000_000_000
PROFILE = built_in_profiles().default_for("h100")
MODEL = admin_pb2.Model(model_id="m", context_tokens=1000, output_tokens_max=500, output_tokens_default=100)
A: BucketKey = ("a", "m")
B: BucketKey = ("b", "m")


def test_a_genuine_key_names_its_tenant() -> None:
    """The whole key is checked, the scheme in any case."""
    table = {"abcdefghijklmnop": api_key(KEY, TENANT)}
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert authenticate(f"{scheme} {KEY}", table, PEPPER).tenant_id == TENANT
    with pytest.raises(UnauthenticatedError):
        authenticate(f"Bearer {KEY}", table, b"q" * 32)


def test_what_was_verified_counts_only_for_the_record_it_was_verified_against() -> None:
    """A key that is revoked, moved to another tenant or given another secret is looked at anew; a wrong one always."""
    genuine, wrong = f"Bearer {KEY}", f"Bearer {KEY}r"
    table = {"abcdefghijklmnop": api_key(KEY, TENANT)}
    verified = Verified(PEPPER)
    for _ in range(2):
        assert verified.authenticate(genuine, table).tenant_id == TENANT
        with pytest.raises(UnauthenticatedError):
            verified.authenticate(wrong, table)
        with pytest.raises(UnauthenticatedError):
            verified.authenticate(None, table)
    table["abcdefghijklmnop"] = api_key(KEY, "other")
    assert verified.authenticate(genuine, table).tenant_id == "other"
    table["abcdefghijklmnop"] = api_key(f"{KEY}r", "other")
    with pytest.raises(UnauthenticatedError):
        verified.authenticate(genuine, table)
    assert verified.authenticate(wrong, table).tenant_id == "other"
    table.clear()
    for each in (genuine, wrong):
        with pytest.raises(UnauthenticatedError):
            verified.authenticate(each, table)


def test_only_so_many_genuine_values_are_remembered() -> None:
    """The one that came first makes room; what is forgotten is only checked again."""
    table = {"abcdefghijklmnop": api_key(KEY, TENANT)}
    verified = Verified(PEPPER, values_max=3)
    for number in range(10):
        assert verified.authenticate(f"Bearer {' ' * (number % 5)}{KEY}", table).tenant_id == TENANT
        assert len(verified) == min(3, number + 1)


@given(st.text(max_size=300))
def test_no_text_breaks_the_key_parser_or_leaks(text: str) -> None:
    """Any text is refused or has an id; the error never repeats the text."""
    try:
        assert key_id_of(text)
    except UnauthenticatedError as error:
        assert len(text) < 4 or text not in error.message  # noqa: PT017


def test_prices_follow_bytes_lengths_and_limits() -> None:
    """More bytes cost more prefill, max_tokens caps the output estimate, and usage teaches both estimators."""
    prices = Pricing(OutputLengthEstimator(), BytesPerToken())

    def price(size: int, max_tokens: int, *, runs: bool = False) -> pricing.Price:
        return prices.estimate(
            PROFILE,
            tenant_id="t",
            model_id="m",
            prompt_bytes=size,
            messages=0,
            max_tokens=max_tokens,
            runs_to_max=runs,
            bytes_per_token_start=4.0,
        )

    assert price(4000, 10).input_tokens == 1000
    assert price(8000, 10).cost.prefill_milli_mu > price(4000, 10).cost.prefill_milli_mu
    assert price(4000, 10).output_tokens == 10
    assert price(4000, 4000, runs=True).output_tokens == 4000
    for _ in range(300):
        prices.observe(
            PROFILE,
            tenant_id="t",
            model_id="m",
            prompt_bytes=4000,
            messages=0,
            input_tokens=2000,
            output_tokens=40,
            runs_to_max=False,
            bytes_per_token_start=4.0,
        )
    assert abs(price(4000, 4000).input_tokens - 2000) < 50
    assert abs(price(4000, 4000).output_tokens - 40) < 5


def test_nonsense_counts_are_priced_and_not_raised() -> None:
    """An engine's wild usage cannot fail a request that was answered."""
    assert pricing.settled(PROFILE, -5, -5, 99).total_milli_mu == 0
    assert pricing.settled(PROFILE, 10, 5, 10**12).total_milli_mu > 0


def test_a_decaying_sum_halves_and_reads_as_a_rate() -> None:
    """Half after a half-life; fed steadily it reads the feed's rate."""
    once = DecayingSum(2.0, 0)
    once.add(8, 0)
    assert math.isclose(once.value(2 * SECOND), 4.0)
    steady = DecayingSum(2.0, 0)
    for tick in range(400):
        steady.add(10, tick * SECOND // 10)
    assert math.isclose(steady.per_minute(40 * SECOND), 6000, rel_tol=0.02)


def test_the_retry_budget_is_a_share_of_settled_work_and_a_floor() -> None:
    """Three at first; then a fifth of what was settled; the floor comes back with time."""
    budget = RetryBudget(0)
    assert [budget.allow(100, 0) for _ in range(5)] == [True, True, True, False, False]
    budget.settled(10_000, 0)
    assert sum(budget.allow(100, 0) for _ in range(100)) == 17
    assert not budget.allow(100, 0)
    assert budget.allow(100, 4 * SECOND)


def test_repeated_ids_window() -> None:
    """In flight, finished, expired, abandoned and mismatched ids, per tenant."""
    window: IdempotencyWindow[str] = IdempotencyWindow(window_s=600)
    assert window.begin("t", "1", b"x", 0) is None
    with pytest.raises(ConflictError) as caught:
        window.begin("t", "1", b"x", 0)
    assert caught.value.reason is Reason.REQUEST_IN_FLIGHT
    assert window.begin("other", "1", b"y", 0) is None
    window.finish("t", "1", "answer", 6, 0)
    assert window.begin("t", "1", b"x", 599 * SECOND) == "answer"
    with pytest.raises(InvalidArgumentError):
        window.begin("t", "1", b"z", 599 * SECOND)
    assert window.begin("t", "1", b"z", 601 * SECOND) is None
    window.abandon("t", "1")
    assert window.begin("t", "1", b"x", 601 * SECOND) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40), st.booleans()), max_size=80))
def test_the_window_keeps_its_limits(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever happens, bytes and finished entries stay bounded and accounted."""
    window: IdempotencyWindow[int] = IdempotencyWindow(entries_max=5, answer_bytes_max=100)
    in_flight = 0
    for now_s, (number, size, succeeds) in enumerate(steps):
        if window.begin("t", str(number), b"", now_s * SECOND) is not None:
            continue
        if succeeds:
            window.finish("t", str(number), number, size, now_s * SECOND)
        else:
            window.abandon("t", str(number))
        assert window.answer_bytes <= 100
        assert len(window) <= 5 + in_flight


@given(st.text(min_size=1, max_size=60), st.data())
def test_a_replay_passes_exactly_what_is_new(text: str, data: st.DataObject) -> None:
    """However both runs are cut into pieces, delivered text plus the rest is the text, tokens likewise."""
    cut = data.draw(st.integers(0, len(text)))
    replay = Replay(text[:cut], cut)
    rest, tokens, at = "", 0, 0
    while at < len(text):
        size = data.draw(st.integers(1, 7))
        piece = text[at : at + size]
        fresh, new_tokens = replay.feed(piece, len(piece))
        rest, tokens, at = rest + fresh, tokens + new_tokens, at + size
    assert replay.agrees
    assert replay.caught_up
    assert (text[:cut] + rest, cut + tokens) == (text, len(text))


@given(st.text(min_size=2, max_size=30), st.data())
def test_a_replay_notices_any_difference(text: str, data: st.DataObject) -> None:
    """One changed character in the repeated part is enough."""
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :]
    replay = Replay(text, len(text))
    replay.feed(changed, 1)
    assert not replay.agrees
    assert replay.feed("more", 1) == ("", 0)


def test_accounts_balance() -> None:
    """received = finished + in flight, by outcome."""
    accounts = Accounts()
    accounts.received += 3
    accounts.finish("t", "m", Outcome.COMPLETED, "")
    accounts.finish("t", "m", Outcome.REFUSED, "QUOTA_USED_UP")
    assert accounts.in_flight == 1


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_histograms_count_everything_once(values: list[float]) -> None:
    """Each value lands in the bucket whose bound is the first not below it."""
    histogram = Histogram((1.0, 10.0, 100.0))
    for value in values:
        histogram.observe(value)
    naive = Counter(next((i for i, bound in enumerate((1, 10, 100)) if value <= bound), 3) for value in values)
    assert histogram.counts == [naive[i] for i in range(4)]


WRONG = [
    (pb.GenerateRequest(), "prompt"),
    (pb.GenerateRequest(prompt=""), "prompt"),
    (pb.GenerateRequest(chat=pb.Chat()), "chat.messages"),
    (pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="x")])), "chat.messages[0].role"),
    (pb.GenerateRequest(prompt="x" * 2001), "prompt"),
    (pb.GenerateRequest(prompt="ä" * 1001), "prompt"),
    (pb.GenerateRequest(prompt="x", session_id="s" * 257), "session_id"),
    (pb.GenerateRequest(prompt="x", request_id="r" * 129), "request_id"),
    (pb.GenerateRequest(prompt="x", request_id="with space"), "request_id"),
    (pb.GenerateRequest(prompt="x", priority=9), "priority"),  # type: ignore[arg-type]
]
WRONG_SAMPLING = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 501}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": 0}, "top_k"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": float("inf")}, "frequency_penalty"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["ok", "x" * 257]}, "stop[1]"),
]


@pytest.mark.parametrize(("request_", "field"), WRONG)
def test_wrong_requests_are_refused_by_name(request_: pb.GenerateRequest, field: str) -> None:
    """Every limit of the request, at limit + 1."""
    with pytest.raises(FairleadError) as caught:
        check(request_, MODEL, prompt_bytes_max=2000)
    assert caught.value.field == field


@pytest.mark.parametrize(("sampling", "field"), WRONG_SAMPLING)
def test_wrong_sampling_is_refused_by_name(sampling: dict[str, object], field: str) -> None:
    """Every range of the sampling parameters, just outside."""
    parameters = pb.SamplingParameters(**sampling)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError) as caught:
        check(pb.GenerateRequest(prompt="x", sampling=parameters), MODEL, prompt_bytes_max=2000)
    assert caught.value.field == f"sampling.{field}"


def test_requests_at_their_limits_pass_and_defaults_are_the_models() -> None:
    """Every limit exactly, and what silence means."""
    sampling = pb.SamplingParameters(
        max_tokens=500,
        temperature=2.0,
        top_p=1.0,
        top_k=1,
        stop=["x" * 256] * 16,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        repetition_penalty=2.0,
    )
    full = pb.GenerateRequest(
        prompt="ä" * 1000, session_id="s" * 256, request_id="~" * 128, sampling=sampling, priority=pb.PRIORITY_BATCH
    )
    checked = check(full, MODEL, prompt_bytes_max=2000)
    assert (checked.prompt_bytes, checked.max_tokens, checked.priority) == (2000, 500, pb.PRIORITY_BATCH)
    silent = check(pb.GenerateRequest(prompt="x"), MODEL, prompt_bytes_max=2000)
    assert (silent.max_tokens, silent.priority) == (100, pb.PRIORITY_INTERACTIVE)


def test_the_platforms_own_priority_is_not_for_tenants() -> None:
    """System priority is refused."""
    with pytest.raises(PermissionDeniedError):
        check(pb.GenerateRequest(prompt="x", priority=pb.PRIORITY_SYSTEM), MODEL, prompt_bytes_max=2000)

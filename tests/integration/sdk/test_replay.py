"""A replay against a real gRPC server: open loop, counted to the last request."""

from __future__ import annotations

import asyncio
import json

import pytest
from rich.console import Console

from fairlead import InvalidArgumentError, NotFoundError, QuotaExceededError, Reason, UnauthenticatedError
from fairlead.inference.v1 import inference_pb2
from fairlead.replay import (
    ReplayOptions,
    ReplayProgress,
    ReplayReport,
    ReplayTarget,
    TraceRequest,
    footnotes,
    replay,
    report_table,
)
from tests.support.fake_platform import FakePlatform
from tests.support.waiting import eventually

ALPHA, BETA = ReplayTarget("alpha", "fl-key-alpha"), ReplayTarget("beta", "fl-key-beta")


def trace(count: int, gap_s: float = 0.005) -> list[TraceRequest]:
    return [TraceRequest(number * gap_s, 20 + number, 4) for number in range(count)]


async def test_everything_is_sent_measured_and_counted(platform: FakePlatform) -> None:
    """Every request is dealt to one tenant, answered, timed and charged, and both sides count the same."""
    report = await replay(trace(40), [ALPHA, BETA], ReplayOptions([platform.address]))
    total = report.total
    assert (total.received, total.admitted, total.ok, total.difference, total.not_sent) == (40, 40, 40, 0, 0)
    assert [tenant.tenant for tenant in report.tenants] == ["alpha", "beta"]
    assert sum(tenant.ok for tenant in report.tenants) == 40
    assert all(tenant.ok > 5 for tenant in report.tenants)
    assert total.output_tokens == 160
    assert total.settled_milli_mu == sum(platform.router.settled_milli_mu.values())
    assert total.ttft.count == total.tpot.count == 40
    assert total.ttft.p50_ms is not None
    assert 0 < total.ttft.p50_ms <= (total.ttft.p99_ms or 0)
    sent = [seen for seen in platform.router.seen if seen.method == "StreamGenerate"]
    assert {seen.request.sampling.ignore_end_token for seen in sent} == {True}
    assert all(len(seen.request.prompt) >= 80 for seen in sent)


async def test_refusals_and_failures_are_told_apart(platform: FakePlatform) -> None:
    """A quota refusal is refused by its reason; a broken stream was admitted, and its charge is counted."""
    platform.router.refusals.append(QuotaExceededError("held", reason=Reason.QUOTA_HELD, retry_after_s=0.01))
    platform.router.break_after_tokens = 2
    broken = await replay(trace(4), [ALPHA], ReplayOptions([platform.address]))
    assert broken.total.refused == {"QUOTA_HELD": 1}
    assert (broken.total.failed, broken.total.admitted, broken.total.difference) == ({"STREAM_BROKEN": 3}, 3, 0)
    assert (broken.total.settled_milli_mu, broken.total.cost_unknown) == (60, 0)
    assert broken.total.output_tokens == 6


async def test_quota_refusals_are_listed_by_reason(platform: FakePlatform) -> None:
    """Refusals do not stop the open loop, and none is retried unless asked for."""
    platform.router.refusals.extend([QuotaExceededError("used up", retry_after_s=0.01) for _ in range(4)])
    report = await replay(trace(10), [ALPHA], ReplayOptions([platform.address]))
    assert report.total.refused == {"QUOTA_USED_UP": 4}
    assert (report.total.ok, report.total.difference) == (6, 0)
    assert report.total.estimated_milli_mu < 7000
    assert any("4 QUOTA_USED_UP" in note for note in footnotes(report))


async def test_speed_compresses_time(platform: FakePlatform) -> None:
    """Twenty recorded seconds at speed 100 take a fraction of a second."""
    requests = [TraceRequest(number * 1.0, 5, 1) for number in range(21)]
    report = await replay(requests, [ALPHA], ReplayOptions([platform.address], speed=100))
    assert report.total.ok == 21
    assert 0.2 <= report.wall_s < 10


async def test_the_valve_counts_what_it_holds_back(platform: FakePlatform) -> None:
    """With one request allowed in flight and answers that never come, the rest is counted as not sent."""
    platform.router.hold = asyncio.Event()
    stop = asyncio.Event()
    running = asyncio.create_task(
        replay(trace(10), [ALPHA], ReplayOptions([platform.address], in_flight_max=1), stop=stop)
    )
    await eventually(lambda: any(seen.method == "StreamGenerate" for seen in platform.router.seen))
    platform.set_event(platform.router.hold)
    report = await running
    assert report.total.received + report.total.not_sent == 10
    assert report.total.not_sent > 0
    assert report.total.difference == 0


async def test_stopping_cancels_what_is_in_flight(platform: FakePlatform) -> None:
    """A replay that is stopped ends at once; what was in flight is counted as cancelled, at the router too."""
    platform.router.hold = asyncio.Event()
    stop = asyncio.Event()
    seen: list[ReplayProgress] = []
    requests = [*trace(5), TraceRequest(3600.0, 5, 5)]
    running = asyncio.create_task(replay(requests, [ALPHA], ReplayOptions([platform.address]), seen.append, stop=stop))
    await eventually(lambda: sum(try_.method == "StreamGenerate" for try_ in platform.router.seen) == 5)
    stop.set()
    report = await running
    assert (report.total.received, report.total.cancelled, report.total.difference) == (5, 5, 0)
    assert report.interrupted
    assert report.total.cost_unknown == 5
    assert seen[-1].ended["cancelled"] == 5
    await eventually(lambda: len(platform.router.cancelled) == 5)


async def test_cancelling_the_replay_leaves_nothing_running(platform: FakePlatform) -> None:
    """A cancelled caller gets its cancellation, and the router sees every stream end."""
    platform.router.hold = asyncio.Event()
    running = asyncio.create_task(replay(trace(3), [ALPHA], ReplayOptions([platform.address])))
    await eventually(lambda: sum(try_.method == "StreamGenerate" for try_ in platform.router.seen) == 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: len(platform.router.cancelled) == 3)


async def test_mistakes_are_found_before_anything_is_sent(platform: FakePlatform) -> None:
    """A wrong key, an unknown model, an ambiguous model and nonsense options are errors, not samples."""
    options = ReplayOptions([platform.address])
    with pytest.raises(UnauthenticatedError):
        await replay(trace(1), [ReplayTarget("x", "fl-nobody")], options)
    with pytest.raises(NotFoundError, match="may use: tiny"):
        await replay(trace(1), [ReplayTarget("alpha", "fl-key-alpha", model="huge")], options)
    platform.router.models.append(inference_pb2.ModelInfo(id="other", context_tokens=10, bytes_per_token=1))
    with pytest.raises(NotFoundError, match="name the model"):
        await replay(trace(1), [ALPHA], options)
    with pytest.raises(InvalidArgumentError, match="speed"):
        await replay(trace(1), [ALPHA], ReplayOptions([platform.address], speed=0))
    with pytest.raises(InvalidArgumentError, match="nothing to replay"):
        await replay([], [ALPHA], options)
    assert not any(seen.method == "StreamGenerate" for seen in platform.router.seen)


async def test_the_report_is_json_and_a_table(platform: FakePlatform) -> None:
    """Both forms hold the same numbers; the lengths' scaling is said."""
    report: ReplayReport = await replay(trace(6), [ALPHA, BETA], ReplayOptions([platform.address]), notes=["sorted"])
    data = json.loads(json.dumps(report.to_dict()))
    assert set(data) == {"total", "tenants", "notes", "speed", "wall_s", "lag_p99_ms", "interrupted"}
    assert data["total"]["ok"] == 6
    assert data["notes"][0] == "sorted"
    assert "made-up words" in data["notes"][1]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report_table(report))
    assert "alpha" in captured.get()
    assert "difference 0: as it must be" in " ".join(footnotes(report))

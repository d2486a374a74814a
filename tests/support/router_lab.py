"""A whole router in one process for tests: real cores and flow, a fake upstream with knobs, no network below it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from common.clock import Clock, SystemClock
from common.telemetry import Telemetry
from data_plane.router.assignments import Assignments
from data_plane.router.config import RouterConfig
from data_plane.router.core.fleet import Link
from data_plane.router.core.holds import LeaseTerms
from data_plane.router.core.loads import Report
from data_plane.router.router import Router
from data_plane.router.tables import Tables
from data_plane.router.upstream_pulled import Pulled, PulledUpstream
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.profiles import built_in_profiles

PEPPER = b"p" * 32
MODEL = "tiny"
TENANT = "acme"
KEY = "fl-abcdefghijklmnop-secret"
OTHER_TENANT = "globex"
OTHER_KEY = "fl-qrstuvwxyz234567-other"


def api_key(key: str, tenant_id: str) -> admin_pb2.ApiKey:
    """The stored form of a key."""
    digest = hmac.digest(PEPPER, key.encode(), hashlib.sha256)
    return admin_pb2.ApiKey(key_id=key.split("-")[1], tenant_id=tenant_id, key_hmac=digest)


@dataclass
class Script:
    """What a fake replica does with each request.

    Attributes:
        pieces: Text pieces, one token each.
        fail_before: Raised instead of an answer.
        fail_after: Raised after this many pieces.
        failure: What is raised after `fail_after`.
        gate: Awaited before the first piece, when set.
        step: Awaited before every piece, when set.
        input_tokens: What usage says; the prompt's bytes over 4 when 0.
    """

    pieces: Sequence[str] = ("Hello", " ", "world")
    fail_before: FairleadError | None = None
    fail_after: int | None = None
    failure: FairleadError | None = None
    gate: asyncio.Event | None = None
    step: asyncio.Event | None = None
    input_tokens: int = 7
    finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP


@dataclass
class FakeUpstream:
    """Replicas that follow scripts; see PulledUpstream.

    Attributes:
        scripts: By replica id.
        calls: (replica id, request, metadata) in order.
        cancelled: Replica ids whose work was cancelled before its end.
        running: Requests running now.
    """

    scripts: dict[str, Script] = field(default_factory=dict)
    calls: list[tuple[str, engine_pb2.EngineGenerateRequest, dict[str, str]]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: int = 0

    async def generate(
        self,
        replica: engine_pb2.Replica,
        request: engine_pb2.EngineGenerateRequest,
        *,
        deadline_ns: int,
        metadata: Sequence[tuple[str, str]],
    ) -> AsyncGenerator[engine_pb2.EngineGenerateResponse, None]:
        """See PulledUpstream."""
        script = self.scripts.setdefault(replica.replica_id, Script())
        copy = engine_pb2.EngineGenerateRequest()
        copy.CopyFrom(request)
        self.calls.append((replica.replica_id, copy, dict(metadata)))
        done = False
        self.running += 1
        try:
            if script.fail_before is not None:
                done = True
                raise script.fail_before
            if script.gate is not None:
                await script.gate.wait()
            for index, piece in enumerate(script.pieces[: request.request.sampling.max_tokens]):
                if script.step is not None:
                    await script.step.wait()
                    script.step.clear()
                if script.fail_after == index and script.failure is not None:
                    done = True
                    raise script.failure
                yield engine_pb2.EngineGenerateResponse(text=piece, output_tokens=1)
            done = True
            yield engine_pb2.EngineGenerateResponse(
                finish_reason=script.finish_reason,
                usage=pb.Usage(input_tokens=script.input_tokens, output_tokens=len(script.pieces)),
            )
        finally:
            self.running -= 1
            if not done:
                self.cancelled.append(replica.replica_id)


class RouterLab:
    """A router over dictionaries.

    Args:
        replicas: Replica ids of the one model.
        clock: Time; the machine's when left out.
        rate: Lease rate of the tenant, mMU per minute.
        burst: Lease burst, mMU.
        config: Settings beyond the defaults.
        upstream: How replicas are reached; the fake one when left out.
    """

    def __init__(
        self,
        replicas: Sequence[str] = ("r1", "r2"),
        *,
        clock: Clock | None = None,
        rate: int = 6_000_000,
        burst: int = 3_000_000,
        config: RouterConfig | None = None,
        upstream: PulledUpstream | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.keys = {
            "abcdefghijklmnop": api_key(KEY, TENANT),
            "qrstuvwxyz234567": api_key(OTHER_KEY, OTHER_TENANT),
        }
        self.tenants = {name: admin_pb2.Tenant(tenant_id=name) for name in (TENANT, OTHER_TENANT)}
        self.models = {
            name: admin_pb2.Model(
                model_id=name,
                engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
                context_tokens=8192,
                output_tokens_max=4096,
                output_tokens_default=256,
                bytes_per_token=4.0,
            )
            for name in (MODEL, "secret-model")
        }
        self.policies = {f"{MODEL}/{TENANT}": admin_pb2.Reservation(tenant_id=TENANT, model_id=MODEL)}
        self.assignments = Assignments(self.clock)
        self.upstream = FakeUpstream()
        self.config = config or RouterConfig()
        self.telemetry = Telemetry("router", self.config)
        self.spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.telemetry.tracer = provider.get_tracer("test")
        self.telemetry.sample_ratio = 1.0
        self.tables = Tables(
            keys=self.keys,
            tenants=self.tenants,
            models=self.models,
            policies=self.policies,
            assignments=self.assignments,
            profiles=built_in_profiles(),
        )
        self.router = Router(
            self.config,
            tables=self.tables,
            upstream=Pulled(upstream or self.upstream),
            pepper=PEPPER,
            telemetry=self.telemetry,
            clock=self.clock,
        )
        for replica_id in replicas:
            self.add_replica(replica_id)
        self.lease(rate, burst)

    def add_replica(self, replica_id: str) -> None:
        """A ready, idle replica whose load stream is up."""
        now_ns = self.clock.monotonic_ns()
        fleet = self.router.fleet
        fleet.enlist(
            engine_pb2.Replica(
                replica_id=replica_id,
                address=f"{replica_id}:1",
                model_id=MODEL,
                engine="fake",
                capacity_milli_mu_per_minute=100_000,
                state=engine_pb2.REPLICA_STATE_READY,
            ),
            now_ns,
        )
        fleet.report(replica_id, Report(1, 0, 0), engine_pb2.REPLICA_STATE_READY, now_ns)
        fleet.link(replica_id, Link.UP, now_ns)

    def lease(self, rate: int, burst: int, *, tenant: str = TENANT) -> None:
        """Puts one lease into force for an hour."""
        now_ns = self.clock.monotonic_ns()
        terms = LeaseTerms(rate, burst, rate)
        self.router.holds.apply({(tenant, MODEL): terms}, expires_ns=now_ns + 3600 * 10**9, now_ns=now_ns)

    def received_equals_finished(self) -> bool:
        """Whether every request ended exactly once and nothing is held."""
        accounts = self.router.accounts
        ended = sum(accounts.finished.values())
        return accounts.received == ended and self.router.holds.open_holds == 0 and accounts.in_flight == 0


def prompt_request(text: str = "Once upon a time", **fields: object) -> pb.GenerateRequest:
    """A plain request to the lab's model."""
    return pb.GenerateRequest(model=MODEL, prompt=text, **fields)  # type: ignore[arg-type]  # test shorthand

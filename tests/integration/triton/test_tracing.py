"""Triton's own spans join the trace of the request."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engines.engine import EngineRequest, Prompt, Sampling
from fairlead.errors import UnavailableError
from tests.support.triton import collect, log_of, running_engine
from tests.support.waiting import eventually

pytestmark = pytest.mark.triton

PROMPT = "canary-prompt"


class Collector:
    """A tiny OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Type", self.headers["Content-Type"])
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"

    def spans(self) -> list[tuple[str, str, str]]:
        """(trace id, parent span id, name) of every span received; Triton sends OTLP as JSON."""
        found = []
        for body in self.bodies:
            for resource in json.loads(body)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    found += [(s["traceId"], s.get("parentSpanId", ""), s["name"]) for s in scope["spans"]]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, args=(0.05,))
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


async def test_spans_join_the_callers_trace(tmp_path: Path, collector: Collector) -> None:
    """Proves that Triton exports spans below ours for sampled requests only, and that no prompt is in them."""
    trace_id, parent_id, other_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "1" * 32
    async with running_engine(tmp_path, otlp_traces_url=collector.url) as engine:
        for traceparent in (f"00-{other_id}-{parent_id}-00", "", f"00-{trace_id}-{parent_id}-01"):
            what = EngineRequest(f"t{traceparent}", Prompt(PROMPT), Sampling(4), traceparent=traceparent)
            try:
                await collect(engine, what)
            except UnavailableError:
                # Triton 2.51 may end by itself (docs/engines.md); its agent would do the same.
                await eventually(lambda: not engine.alive(), 10, "a server that has ended")
                sys.stderr.write(log_of(tmp_path))
                await engine.start()
                await collect(engine, what)
        await eventually(collector.spans, 15)
    spans = collector.spans()
    assert {span[0] for span in spans} == {trace_id}
    assert parent_id in {span[1] for span in spans}
    assert PROMPT.encode() not in b"".join(collector.bodies)

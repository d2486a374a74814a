"""What a person sees once everything serves: a few seconds of recorded traffic, and how to go on."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import fairlead
from deploy.local.console import Console, StartError
from deploy.local.demo import TENANTS
from deploy.local.ports import HOST
from deploy.local.programs import Site
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import FairleadError
from fairlead.replay import ReplayOptions, ReplayProgress, ReplayTarget, footnotes, read_trace, replay, report_table

REQUEST_DEADLINE_S = 20.0
REPLAY_IN_FLIGHT_MAX = 64
REPLAY_SPEED = {"triton": 0.4, "simulated": 1.0}
"""Of the recording: a service on GPUs. Two CPU replicas serve about 160 MU per minute; the excerpt wants 250."""
TABLE_COLUMNS = 120


async def first_requests(site: Site, model: admin_pb2.Model, keys: dict[str, str], deadline_s: float) -> None:
    """Sends one real request per tenant over gRPC and one over HTTP, until each is answered.

    Args:
        site: Where the platform runs.
        model: The demo model.
        keys: API keys by tenant.
        deadline_s: Loop time at which to give up.

    Raises:
        StartError: A tenant is not served by the deadline; the message holds the last error.
    """
    for tenant, key in keys.items():
        async with fairlead.AsyncClient(f"{HOST}:{site.ports.grpc}", api_key=key, tls=False) as client:
            while True:
                try:
                    await client.generate("Hello", model=model.model_id, max_tokens=2, deadline_s=REQUEST_DEADLINE_S)
                    break
                except FairleadError as error:
                    if asyncio.get_running_loop().time() > deadline_s:
                        raise StartError(f"{tenant} is not served over gRPC: {error.message}") from error
                await asyncio.sleep(0.1)
    await _first_http_request(site, model, next(iter(keys.values())), deadline_s)


async def _first_http_request(site: Site, model: admin_pb2.Model, key: str, deadline_s: float) -> None:
    body = {"model": model.model_id, "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        f"http://{HOST}:{site.ports.http}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    while True:
        try:
            answer = await asyncio.to_thread(urllib.request.urlopen, request, None, REQUEST_DEADLINE_S)
            answer.close()
            return
        except urllib.error.HTTPError as error:
            problem = error.read(500).decode(errors="replace")
        except OSError as error:
            problem = str(error)
        if asyncio.get_running_loop().time() > deadline_s:
            raise StartError(f"the HTTP API does not answer: {problem}")
        await asyncio.sleep(0.1)


async def show_replay(
    site: Site, model: admin_pb2.Model, keys: dict[str, str], duration_s: float, console: Console
) -> None:
    """Replays the beginning of the trace that ships with Fairlead, with a progress bar, and prints the table.

    Args:
        site: Where the platform runs.
        model: The demo model.
        keys: API keys by tenant.
        duration_s: How long to send.
        console: Told when it does not work; the platform serves all the same.
    """
    speed = REPLAY_SPEED[model.engine.engine]
    trace = read_trace(duration_s=duration_s * speed)
    pace = "" if speed == 1 else f" at {speed:g} times its speed, which is what two CPU replicas can carry"
    console.say(f"\nReplaying {len(trace.requests)} requests of {trace.name}{pace}:")
    weights = {tenant.tenant_id: tenant.reserved_share for tenant in TENANTS}
    targets = [ReplayTarget(tenant, key, model.model_id, weights[tenant]) for tenant, key in keys.items()]
    options = ReplayOptions(
        [f"{HOST}:{site.ports.grpc}"],
        speed=speed,
        in_flight_max=REPLAY_IN_FLIGHT_MAX,
        deadline_s=REQUEST_DEADLINE_S,
        tls=False,
    )
    screen = RichConsole(file=sys.stdout)
    screen.width = max(screen.width, TABLE_COLUMNS)
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} due  {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task("", total=len(trace.requests))

        def show(progress: ReplayProgress) -> None:
            ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(progress.ended.items()))
            text = f"{progress.in_flight} in flight  {ended}  {progress.output_tokens} tokens"
            bar.update(task, completed=progress.due, description=text)

        try:
            report = await replay(trace.requests, targets, options, show, notes=trace.notes)
        except FairleadError as error:
            console.say(f"The replay did not work: {error.message}")
            return
    screen.print(report_table(report))
    for note in footnotes(report):
        console.say(f"  {note}")


def _cli(site: Site) -> str:
    """The command line tool, told where the platform is unless it finds it by itself."""
    usual = Path("build/run").absolute() == site.run_dir
    return (
        "build/venv/bin/fairlead"
        if usual
        else f"FAIRLEAD_PLATFORM={site.run_dir}/platform.json build/venv/bin/fairlead"
    )


def closing_words(site: Site, model: admin_pb2.Model, keys: dict[str, str]) -> str:
    """The addresses, a curl line and an SDK snippet."""
    tenant, key = next(iter(keys.items()))
    http, grpc = f"http://{HOST}:{site.ports.http}", f"{HOST}:{site.ports.grpc}"
    return f"""
Fairlead serves {model.model_id} to {" and ".join(keys)}:
    HTTP   {http}/v1   (OpenAI-compatible)
    gRPC   {grpc}   (SDK)
    admin  {HOST}:{site.ports.admin}   (token in {site.secrets.admin_token})
    {site.run_dir / "platform.json"} holds addresses, keys and processes; logs are in {site.log_dir}

Try it as {tenant}:
    curl {http}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
      -d '{{"model": "{model.model_id}", "max_tokens": 32, "messages": [{{"role": "user", "content": "Hello"}}]}}'

    build/venv/bin/python - <<'END'
    import fairlead
    with fairlead.Client("{grpc}", api_key="{key}") as client:
        answer = client.generate("Once upon a time", model="{model.model_id}", max_tokens=32)
        print(answer.text, answer.usage, answer.cost)
    END

    {_cli(site)} capacity show

Ctrl-C stops everything.
"""

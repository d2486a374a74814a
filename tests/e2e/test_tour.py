"""What leaves a platform whole, on one of them: the README's five-minute tour, executed, and the real openai client."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.e2e.make_run import ROOT, MakeRun


def part(mark: str) -> str:
    """All shell blocks of the README between `<!-- mark: ...` and the end of that part."""
    text = (ROOT / "README.md").read_text()
    text = text.split(f"<!-- {mark}:")[1].split(f"<!-- {mark} end")[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))


async def execute(platform: MakeRun, script: str) -> subprocess.CompletedProcess[str]:
    """Runs commands of the README against a platform; they must end well."""
    script = script.replace("http://127.0.0.1:8080", platform.document()["http"])
    script = script.replace("build/run/platform.json", str(platform.document_path))
    script = script.replace(
        'export PATH="$PWD/build/venv/bin:$PATH"', f'export PATH="{Path(sys.executable).parent}:$PATH"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = os.environ | {"FAIRLEAD_PLATFORM": str(platform.document_path), "COLUMNS": "160", "PATH": path}
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.mark.timeout(400)
async def test_every_command_of_the_tour_works(sim_platform: MakeRun) -> None:
    """Each command of the tour ends well on a fresh platform, and the answers say what the text promises."""
    done = await execute(sim_platform, part("tour"))
    assert '"chat.completion"' in done.stdout
    assert "initech" in done.stdout
    assert "TTFT" in done.stdout


@pytest.mark.timeout(400)
async def test_prices_are_measured_and_taken_back_and_a_scenario_runs(sim_platform: MakeRun, tmp_path: Path) -> None:
    """Each command of the README's part on prices ends well: a live calibration is published, drawn, rolled back, and
    a scenario is simulated and drawn."""
    script = part("prices").replace("build/calibration.html", str(tmp_path / "calibration.html"))
    done = await execute(sim_platform, script.replace("build/simulation.html", str(tmp_path / "simulation.html")))
    assert "published" in done.stdout
    assert "PROFILE_ACTIVATED" in done.stdout
    for name in ("calibration.html", "simulation.html"):
        assert (tmp_path / name).read_text().lower().startswith("<!doctype html>"), name


async def test_the_openai_client_streams_and_lists(sim_platform: MakeRun) -> None:
    """An unmodified openai client lists models, streams a chat with usage and cost, and gets typed errors."""
    facts = sim_platform.document()
    tenant = facts["tenants"]["acme"]
    async with openai.AsyncOpenAI(api_key=tenant["key"], base_url=facts["http"] + "/v1", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [tenant["model"]]
        stream = await client.chat.completions.create(
            model=tenant["model"],
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        usage = chunks[-1].usage
        assert usage is not None
        assert 0 < usage.completion_tokens <= 12
        assert (usage.model_extra or {})["fairlead"]["settled_milli_mu"] > 0
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hello"}])
        assert refused.value.code == "model_not_found"

"""The README's five-minute tour, executed."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.make_run import ROOT, MakeRun


def tour() -> str:
    """All shell blocks of the README between the tour's marks."""
    text = (ROOT / "README.md").read_text()
    part = text.split("<!-- tour:")[1].split("<!-- tour ends -->")[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", part, re.DOTALL))


@pytest.mark.timeout(400)
async def test_every_command_of_the_tour_works(sim_platform: MakeRun) -> None:
    """Each command of the tour ends well on a fresh platform, and the answers say what the text promises."""
    facts = sim_platform.document()
    script = tour().replace("http://127.0.0.1:8080", facts["http"])
    script = script.replace("build/run/platform.json", str(sim_platform.document_path))
    script = script.replace(
        'export PATH="$PWD/build/venv/bin:$PATH"', f'export PATH="{Path(sys.executable).parent}:$PATH"'
    )
    environ = os.environ | {"FAIRLEAD_PLATFORM": str(sim_platform.document_path), "COLUMNS": "160"}
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
    assert '"chat.completion"' in done.stdout
    assert "initech" in done.stdout
    assert "TTFT" in done.stdout

"""How the benches of the relay begin and end: whatever happens, what was measured is told."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.markup import escape

from benchmarks.relay.build import BuildError
from benchmarks.report import Bar, Report


def run(name: str, measure: Callable[[Report, Console], Awaitable[None]]) -> None:
    """Measures, prints and writes the report.

    Args:
        name: Of the report.
        measure: Adds to it.
    """
    console = Console() if sys.stdout.isatty() else Console(width=180)
    report, began_s = Report(name), time.monotonic()

    async def measured() -> None:
        await measure(report, console)

    # Ended from outside it still says what it knows.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(measured())
    except BuildError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: what had been measured is in the report, and what had not counts as missed")
    except Exception:  # noqa: BLE001  # what was measured before is worth being told
        console.print(f"[red]{escape(traceback.format_exc())}[/]")
        report.add("failed", 1.0, Bar(0.0))
    finally:
        report.add("wall_s", time.monotonic() - began_s)
        console.print(f"written to {report.publish(console)}")

"""`python -m deploy.local`: runs the platform on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys

from deploy.local.console import Console, StartError, stop_signals
from deploy.local.engine_choice import choose_engine
from deploy.local.options import Options, parse
from deploy.local.ports import choose_ports
from deploy.local.runlock import AlreadyRunningError, run_lock


def main() -> int:
    """Runs the platform.

    Returns:
        Exit code: 0 after an orderly stop, 1 when it could not start, 2 when it runs already.
    """
    for number in stop_signals():
        signal.signal(number, _leave)
    options = parse(sys.argv[1:])
    console = Console()
    try:
        with run_lock(options.run_dir):
            _run(options, console)
    except AlreadyRunningError as error:
        console.complain(str(error))
        return 2
    except StartError as error:
        console.complain(f"\nThe platform did not start.\n{error}")
        return 1
    return 0


def _run(options: Options, console: Console) -> None:
    # A script that waits for this file must not read that of a launcher that was killed.
    (options.run_dir / "platform.json").unlink(missing_ok=True)
    ports = choose_ports(options)
    choice = choose_engine(options)
    console.say(f"Fairlead: {choice.announcement}")
    # Imported here: a second launcher, or a taken port, should not have to wait for gRPC.
    from deploy.local.platform import LocalPlatform

    asyncio.run(LocalPlatform(options, choice, ports, console).run())


def _leave(*_: object) -> None:
    """Ends a launcher that has not started anything yet."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())

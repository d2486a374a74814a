"""`python -m deploy.local`: runs the platform on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import sys

from deploy.local.console import Console, StartError
from deploy.local.engine_choice import choose_engine
from deploy.local.options import parse
from deploy.local.platform import LocalPlatform
from deploy.local.ports import choose_ports
from deploy.local.runlock import AlreadyRunningError, run_lock


def main() -> int:
    """Runs the platform.

    Returns:
        Exit code: 0 after an orderly stop, 1 when it could not start, 2 when it runs already.
    """
    options = parse(sys.argv[1:])
    console = Console()
    try:
        with run_lock(options.run_dir):
            ports = choose_ports(options)
            choice = choose_engine(options)
            console.say(f"Fairlead: {choice.announcement}")
            asyncio.run(LocalPlatform(options, choice, ports, console).run())
    except AlreadyRunningError as error:
        console.complain(str(error))
        return 2
    except StartError as error:
        console.complain(f"\nThe platform did not start.\n{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

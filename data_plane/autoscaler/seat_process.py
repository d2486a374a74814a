"""Becomes a replica agent, noted in its seat's file: `python -I -S seat_process.py FD START_NUMBER -- COMMAND`.

The actuator starts an agent through this file. FD is the open seat file with an exclusive lock on it; the lock belongs
to the open file, is inherited here and lives on through exec, so it is held exactly as long as the agent runs, whatever
becomes of the autoscaler. The process writes its own id, so there is no moment at which an agent runs unrecorded.
"""

import json
import os
import sys


def main() -> None:
    """Records this process in the seat file and turns into COMMAND."""
    descriptor, start_number = int(sys.argv[1]), int(sys.argv[2])
    command = sys.argv[sys.argv.index("--") + 1 :]
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"start_number": start_number, "pid": os.getpid()}).encode(), 0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

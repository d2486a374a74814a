"""Runs a command that ends when its launcher does: `python -I -S leash.py LAUNCHER_PID SIGNAL COMMAND...`.

On Linux the kernel is asked to send SIGNAL when the launcher dies (which survives exec), and this process becomes the
command. Elsewhere it stays, watches the launcher, and passes the end of either on. Standard library only, started
without site packages: it costs a few milliseconds.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Puts the command on the leash."""
    launcher, number, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
        # The launcher may have died before the kernel was asked.
        if os.getppid() != launcher:
            return 1
        os.execvp(command[0], command)
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while child.poll() is None:
        if os.getppid() != launcher:
            child.send_signal(number)
        time.sleep(0.5)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())

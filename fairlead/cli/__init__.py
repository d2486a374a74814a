"""The `fairlead` command: administration, trying models out, replaying traces, finding what is wrong.

Exit codes: 0 fine · 1 something is wrong (also: `doctor` found a problem) · 2 wrong usage · 3 not reachable or too late
· 4 key or token refused · 5 not found · 6 exists already or changed meanwhile · 7 quota refused · 130 interrupted.
"""

from fairlead.cli.app import main

__all__ = ["main"]

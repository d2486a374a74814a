"""Which files run where the compiled modules are tested instead of the sources."""

from __future__ import annotations

import os

from common import native

collect_ignore = [] if os.environ[native.SWITCH] == "off" else ["test_noticed.py"]

"""Which files run where the compiled modules are tested instead of the sources."""

from __future__ import annotations

import os

from common import native

collect_ignore = ["test_noticed.py"] if os.environ.get(native.SWITCH) == "on" else []

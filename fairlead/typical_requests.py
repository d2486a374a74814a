"""Requests whose prices people can picture."""

from __future__ import annotations

from typing import Final

TYPICAL_REQUESTS: Final = (
    ("short question", 100, 50),
    ("chat turn", 1_000, 200),
    ("retrieval", 4_000, 300),
    ("long document", 16_000, 500),
    ("long answer", 500, 4_000),
)
"""Name, input tokens, output tokens of each: what reports and the command show the price of."""

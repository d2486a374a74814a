"""What an engine's API process adds to a request's latency, outside the steps. Both drivers of the machine apply it.

A request reaches the scheduler `INGEST_S` after it arrived (parsing, tokenizing), a token is seen `TOKEN_S` after the
step that made it (detokenizing, sending), and the end of the answer `FINISH_S` after its last step. None of it takes
time from the accelerator.

Source: the constants that the BLIS simulator fitted to vLLM.
"""

from __future__ import annotations

from typing import Final

INGEST_S: Final = 0.0156
TOKEN_S: Final = 46e-6
FINISH_S: Final = 0.78e-3

"""Fuzzes one target with atheris: `make fuzz TARGET=http2-frames MINUTES=5`, or without a target to list them.

What reached new code lies in build/fuzz/TARGET, what failed in build/fuzz/TARGET-crash-... With KEEP=1 the smallest
inputs that together reach the same code replace tests/fuzz/corpus/TARGET, which the tests replay without atheris.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["data_plane.relay", "tests.fuzz"]):
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.work import Step, steps_of

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).resolve().parent / "corpus"
FOUND = ROOT / "build" / "fuzz"
INPUT_BYTES_MAX = 2_048
KEPT_BYTES_MAX = 512


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=1.0, help="how long")
    parser.add_argument("--keep", action="store_true", help="keep what reaches most code")
    asked, rest = parser.parse_known_args()
    found, kept = FOUND / asked.target, CORPUS / asked.target
    if asked.keep:
        keep(asked.target, found, kept)
        return
    if not rest:
        found.mkdir(parents=True, exist_ok=True)
        kept.mkdir(parents=True, exist_ok=True)
        rest = [
            f"-max_total_time={round(60 * asked.minutes)}",
            f"-max_len={INPUT_BYTES_MAX}",
            "-len_control=0",
            "-timeout=60",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            f"-artifact_prefix={found}-",
            str(found),
            str(kept),
        ]
    atheris.Setup([sys.argv[0], *rest], TARGETS[asked.target])
    atheris.Fuzz()


def keep(target: str, found: Path, kept: Path) -> None:
    """Keeps, smallest first, those inputs of what was found and what was kept that reach something new.

    Args:
        target: Its name.
        found: All inputs that reached new code.
        kept: Where those go that the tests replay.
    """
    inputs = {path.read_bytes() for folder in (kept, found) if folder.exists() for path in folder.iterdir()}
    reached: set[Step] = set()
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for data in sorted(inputs, key=lambda data: (len(data), data)):
        if len(data) <= KEPT_BYTES_MAX and (steps := steps_of(lambda data=data: TARGETS[target](data))) - reached:
            reached |= steps
            (kept / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    print(f"{target}: kept {len(list(kept.iterdir()))} of {len(inputs)}")


if __name__ == "__main__":
    main()

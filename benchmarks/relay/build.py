"""Builds the mock engine and the load generator, which are in C: in Python they would be what is measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.report import ROOT

SOURCES: Final = Path(__file__).parent / "native"
FOLDER: Final = ROOT / "build" / "relay-bench"
_FLAGS: Final = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror")
_PARTS: Final = {"mock_engine": "mock*.c", "load_generator": "load*.c"}
_SHARED: Final = "wire.c"
_NEEDED: Final = {"gcc": "gcc libc6-dev", "nghttp2": "libnghttp2-dev"}


class BuildError(Exception):
    """The programs cannot be built here; the message says what to install."""


def programs() -> dict[str, Path]:
    """Builds what is older than its sources.

    Returns:
        The programs by name: "mock_engine" and "load_generator".

    Raises:
        BuildError: There is no compiler or no libnghttp2, or the sources do not compile.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    return {name: _built(name, pattern, newest) for name, pattern in _PARTS.items()}


def _built(name: str, pattern: str, newest: float) -> Path:
    program = FOLDER / name
    if program.exists() and program.stat().st_mtime >= newest:
        return program
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise _missing("gcc")
    if not _has_nghttp2(compiler):
        raise _missing("nghttp2")
    sources = [*sorted(SOURCES.glob(pattern)), SOURCES / _SHARED]
    scratch = program.with_suffix(".new")
    command = [compiler, *_FLAGS, "-o", str(scratch), *map(str, sources), "-lnghttp2", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{name} does not compile:\n{done.stderr[-3000:]}")
    scratch.replace(program)
    return program


def _has_nghttp2(compiler: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-x", "c", "-", "-o", f"{folder}/probe", "-lnghttp2"]
        source = "#include <nghttp2/nghttp2.h>\nint main(void) { return nghttp2_version(0) == 0; }\n"
        return subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 0


def _missing(what: str) -> BuildError:
    packages = _NEEDED[what]
    return BuildError(
        f"bench-relay builds its mock engine and its load generator in C and found no {what}.\n"
        f"On Debian or Ubuntu: apt-get install {packages}\n"
        "All it needs: apt-get install gcc libc6-dev libnghttp2-dev"
    )

"""The two compilers behind a native build: mypyc, which writes C, and the machine's own, run on all cores."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mypyc.build import mypycify

from common import native
from deploy.work import BuildError, Work

_STRICT: Final = {"-Werror": "-Werror=implicit-function-declaration"}
"""mypyc asks for the first; a newer compiler's new warning shall not end a build, but this one would end a router."""

_GENERATED: Final = "__native_"
"""How the names of the files begin that hold what was translated; the others are mypyc's runtime, or lead here."""

_FORGOTTEN: Final = ("bytes_extra_ops.h", "str_extra_ops.h", "bytearray_extra_ops.h")
"""Headers of mypyc's runtime that its files for single modules use and do not include (mypyc 2.4)."""

_DIRECT_CALLS: Final = sys.platform == "linux"
"""Calls lead to their functions straight, not by way of a table that lets somebody put another one in between.
Elsewhere than with ELF they do so anyway."""

_SAY_EVERY_S: Final = 10.0


@dataclass(frozen=True)
class Extension:
    """One extension to make.

    Attributes:
        name: Of the module.
        sources: C files.
        include: Folders of headers.
        flags: Of the C compiler.
    """

    name: str
    sources: tuple[Path, ...]
    include: tuple[Path, ...]
    flags: tuple[str, ...]


def translated(paths: Sequence[str], group: str, work_folder: Path, *, optimization: str) -> list[Extension]:
    """Translates modules to C.

    Args:
        paths: The modules, below the current folder.
        group: Name of the library they get.
        work_folder: For the C files.
        optimization: Level of the C compiler, "0" to "3".

    Raises:
        BuildError: mypyc does not take a module; the message says why not.
    """
    options = ["--cache-dir", str(work_folder / "mypy"), "--no-error-summary"]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            extensions = mypycify(
                [*options, *paths],
                opt_level=optimization,
                debug_level="0",
                multi_file=True,
                # Relative: a copy of the checkout finds its objects again.
                target_dir=os.path.relpath(work_folder / "c"),
                group_name=group,
            )
    except SystemExit as refusal:
        errors = [line for line in printed.getvalue().splitlines() if ": error: " in line]
        raise BuildError("\n".join(["mypyc does not take the modules:", *errors, str(refusal)])) from refusal
    return [
        Extension(
            name=str(each.name),
            sources=tuple(map(Path, each.sources)),
            include=(*map(Path, each.include_dirs), Path(sysconfig.get_path("include"))),
            flags=tuple(_STRICT.get(flag, flag) for flag in each.extra_compile_args),
        )
        for each in extensions
    ]


class Extensions:
    """Compiles extensions; what has not changed since the last time is not compiled again.

    Args:
        extensions: What to make.
        work_folder: Holds the C files, and the objects between builds.
        folder: Where the extensions go, flat; made here.
        work: Told what happens.
    """

    def __init__(self, extensions: Sequence[Extension], work_folder: Path, folder: Path, work: Work) -> None:
        self._extensions = extensions
        self._objects = work_folder / "objects"
        self._folder = folder
        self._work = work
        headers = sorted((work_folder / "c").glob(f"{_GENERATED}*.h"))
        self._headers = b"".join(path.read_bytes() for path in headers)
        self._wanted: set[Path] = set()

    def compile(self) -> None:
        """Compiles and links on all cores.

        Raises:
            BuildError: The C compiler refused.
        """
        self._objects.mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(parents=True)
        jobs = [(each, source) for each in self._extensions for source in each.sources]
        # Longest first, so that no core ends up with the longest one alone.
        jobs.sort(key=lambda job: job[1].stat().st_size, reverse=True)
        cores = len(os.sched_getaffinity(0))
        self._work.say(f"native: compiling {len(jobs)} C files on {cores} cores")
        made, said_s = dict[Path, Path](), time.monotonic()
        with ThreadPoolExecutor(cores) as pool:
            for (_, source), done in zip(jobs, pool.map(lambda job: self._object(*job), jobs), strict=True):
                made[source] = done
                if time.monotonic() - said_s > _SAY_EVERY_S:
                    said_s = time.monotonic()
                    self._work.say(f"native: {len(made)} of {len(jobs)}")
            list(pool.map(lambda each: self._link(each, [made[source] for source in each.sources]), self._extensions))
        for path in self._objects.iterdir():
            if path not in self._wanted:
                path.unlink()

    def _object(self, extension: Extension, source: Path) -> Path:
        """Compiles one C file; its name says what was compiled, so that it is found again."""
        translated_here = source.name.startswith(_GENERATED)
        command = [
            *_words("CC"),
            *_words("CFLAGS"),
            *_words("CCSHARED"),
            *extension.flags,
            *(["-fno-plt"] if _DIRECT_CALLS else []),
            *(f"-I{folder}" for folder in extension.include),
            *(word for header in (_FORGOTTEN if translated_here else ()) for word in ("-include", header)),
            "-c",
            str(source),
        ]
        headers = self._headers if translated_here else b""
        known = hashlib.sha256(repr(command).encode() + source.read_bytes() + headers).hexdigest()
        made = self._objects / f"{known}.o"
        self._wanted.add(made)
        if not made.exists():
            scratch = made.with_suffix(".new")
            self._run([*command, "-o", str(scratch)])
            scratch.replace(made)
        return made

    def _link(self, extension: Extension, objects: Sequence[Path]) -> None:
        file = self._folder / f"{extension.name}.{native.ABI}.so"
        straight = ["-Wl,-Bsymbolic-functions"] if _DIRECT_CALLS else []
        self._run([*_words("LDSHARED"), *straight, *map(str, objects), "-o", str(file)])

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{' '.join(command[:1])} failed:\n{done.stderr[-3000:]}")


def _words(variable: str) -> list[str]:
    """How this Python was compiled, as far as extensions have to be compiled alike."""
    return shlex.split(str(sysconfig.get_config_var(variable) or ""))

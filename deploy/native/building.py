"""Compiles modules: Python to C by mypyc, C to extensions by the machine's compiler, and puts the result into place."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from common import native
from deploy.native.modules import chosen, depended_on, module_name
from deploy.work import BuildError, Work

OPTIMIZATION: Final = "2"
"""Level of the C compiler; measured in docs/native.md."""

_KEPT: Final = 2
"""Builds that stay: a process that was started under the one before may still load from it."""

_TRIAL: Final = """
import importlib, json, sys
from pathlib import Path
from common import native
manifest = native.Manifest(**json.load(sys.stdin))
native.use(manifest, Path.cwd())
for name in manifest.modules:
    importlib.import_module(name)
"""

_GROUP: Final = native.LIBRARY.removesuffix("__mypyc")


def build(root: Path, patterns: Sequence[str], work: Work, optimization: str = OPTIMIZATION) -> None:
    """Compiles what is not compiled yet.

    Args:
        root: The checkout; has to be the current folder, as mypy takes its settings from there.
        patterns: See modules.MODULES.
        work: Told what happens.
        optimization: Level of the C compiler, "0" to "3".

    Raises:
        BuildError: There is no compiler here, or a module cannot be compiled; the message says what to do.
    """
    folder = native.folder_of(root)
    folder.mkdir(parents=True, exist_ok=True)
    made_with = f"mypyc {importlib.metadata.version('mypy')} -O{optimization}"
    with _only_one(folder, work):
        modules = chosen(root, patterns)
        if _is_current(root, modules, made_with):
            work.say(f"native: {len(modules)} modules are compiled already")
            return
        need_compiler()
        # Read before they are compiled: what changes meanwhile makes the build stale instead of wrong.
        sources = {path: native.digest(root / path) for path in depended_on(root, modules)}
        files = _compiled(modules, folder, work, optimization)
        manifest = native.Manifest(
            made_with=made_with,
            sources=sources,
            modules={module_name(path): path for path in modules},
            files=files,
            sizes={name: (folder / file).stat().st_size for name, file in files.items()},
        )
        _try(manifest)
        native.write(manifest, root)
        _forget_old(folder)
        work.say(f"native: {len(modules)} modules are compiled")


def _is_current(root: Path, modules: Sequence[str], made_with: str) -> bool:
    """Whether exactly these modules are compiled, from the sources as they are, as they would be now."""
    try:
        manifest = native.read(root)
        native.check(manifest, root)
    except native.NotUsableError:
        return False
    return manifest.made_with == made_with and sorted(manifest.modules.values()) == list(modules)


def need_compiler() -> None:
    """Makes sure that C can be compiled here.

    Raises:
        BuildError: There is no compiler, or Python came without its headers.
    """
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    missing = []
    if shutil.which(compiler) is None:
        missing.append(f"no C compiler ({compiler})")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        missing.append(f"no {header}")
    if missing:
        raise BuildError(f"{' and '.join(missing)}: install gcc and python3-dev; everything works without, only slower")


def _compiled(modules: Sequence[str], folder: Path, work: Work, optimization: str) -> dict[str, str]:
    """Compiles into a folder of its own; returns the extension by module, below `folder`."""
    from deploy.native.compiler import Extensions, translated

    work.say(f"native: translating {len(modules)} modules to C")
    extensions = translated(modules, _GROUP, folder / "work", optimization=optimization)
    scratch = folder / "new"
    shutil.rmtree(scratch, ignore_errors=True)
    Extensions(extensions, folder / "work", scratch, work).compile()
    total = hashlib.sha256()
    for file in sorted(scratch.iterdir()):
        total.update(file.name.encode() + file.read_bytes())
    name = total.hexdigest()[:16]
    shutil.rmtree(folder / name, ignore_errors=True)
    scratch.replace(folder / name)
    files = sorted((folder / name).iterdir())
    return {file.name.partition(f".{native.ABI}")[0]: f"{name}/{file.name}" for file in files}


def _try(manifest: native.Manifest) -> None:
    """Imports all that was compiled: what mypyc takes may still fail then, and no router shall be the one to find out.

    Raises:
        BuildError: A module cannot be imported.
    """
    command = [sys.executable, "-c", _TRIAL]
    text = json.dumps(vars(manifest))
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"what was compiled cannot be imported:\n{done.stderr[-3000:]}")


def _forget_old(folder: Path) -> None:
    builds = [path for path in folder.iterdir() if path.is_dir() and path.name not in ("work", "new")]
    for path in sorted(builds, key=lambda each: each.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _only_one(folder: Path, work: Work) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            work.say("native: another build is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

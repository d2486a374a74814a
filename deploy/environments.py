"""Makes the virtual environments from their hash-locked requirements. Standard library only.

build/venv holds the platform (and, for tests, what they need on top); build/venv-triton holds the CPU Triton. Both are
installed in parallel by a `uv` that the machine's own pip fetched, hash-checked; where uv cannot be had, pip installs
the same locks. A stamp beside each environment names the lock it was made from, so a warm start does nothing here.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.work import CHECKOUT, BuildError, Work
from engines.triton import environment as triton

BUILD = CHECKOUT / "build"
REQUIREMENTS = CHECKOUT / "requirements"
VENV = BUILD / "venv"
TOOLS = BUILD / "tools"
STAMP = "fairlead-environment.json"

_COMMAND = """#!/bin/sh
exec '{python}' -c 'import sys; from fairlead.cli import main; sys.argv[0] = "fairlead"; sys.exit(main())' "$@"
"""


def digest(lock: Path) -> str:
    """Names the content of a lock file."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def describe_venv(venv: Path) -> dict[str, str]:
    """What must stay the same for an environment to be reused: its interpreter and the checkout it points to."""
    python = venv / "bin" / "python"
    return {"interpreter": str(python.resolve()) if python.exists() else "", "checkout": str(CHECKOUT)}


def read_stamp(venv: Path) -> dict[str, str]:
    """Reads what an environment was made from; empty where there is none or it no longer fits."""
    try:
        stamp = json.loads((venv / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    fits = isinstance(stamp, dict) and all(stamp.get(key) == value for key, value in describe_venv(venv).items())
    return stamp if fits else {}


def is_current(venv: Path, lock: Path) -> bool:
    """Whether everything in `lock` is installed in `venv`."""
    return read_stamp(venv).get(lock.stem) == digest(lock)


def write_stamp(venv: Path, locks: Sequence[Path]) -> None:
    """Notes what `venv` was made from."""
    known = read_stamp(venv) | describe_venv(venv) | {lock.stem: digest(lock) for lock in locks}
    scratch = venv / f".{STAMP}"
    scratch.write_text(json.dumps(known))
    scratch.replace(venv / STAMP)


def fetch_uv(work: Work) -> Path | None:
    """Fetches uv with the machine's pip, hash-checked, unless it is there already.

    Returns:
        Its path, or None where it cannot be had; pip does its work then.
    """
    lock = REQUIREMENTS / "bootstrap.lock"
    folder = TOOLS / f"uv-{digest(lock)[:12]}"
    uv = folder / "bin" / "uv"
    if uv.exists():
        return uv
    work.say("fetching uv")
    try:
        pip = _find_pip(work)
        scratch = folder.with_suffix(".new")
        shutil.rmtree(scratch, ignore_errors=True)
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        work.run([*pip, "install", *options, "--target", scratch, "-r", lock])
        shutil.rmtree(folder, ignore_errors=True)
        scratch.replace(folder)
    except BuildError as error:
        work.say(f"no uv ({error}); installing with pip instead, which takes longer")
        return None
    return uv


def _find_pip(work: Work) -> list[str]:
    """The command of some pip: the interpreter's own, or that of a throw-away environment."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "pip"]
    folder = TOOLS / "pip"
    work.run([sys.executable, "-m", "venv", "--clear", folder])
    return [str(folder / "bin" / "python"), "-m", "pip"]


def make_platform(uv: Path | None, *, tests: bool, work: Work) -> None:
    """Makes or updates build/venv.

    Args:
        uv: The installer; None takes pip.
        tests: Whether tests, lint and code generation shall run in it.
        work: Told what happens.

    Raises:
        BuildError: It could not be made.
    """
    name = "dev" if tests else "platform"
    lock = REQUIREMENTS / f"{name}.lock"
    if is_current(VENV, lock):
        return
    work.say(f"build/venv: installing requirements/{name}.lock for {sys.executable}")
    python = VENV / "bin" / "python"
    if not _reusable(VENV):
        shutil.rmtree(VENV, ignore_errors=True)
        work.run([uv, "venv", "--python", sys.executable, VENV] if uv else [sys.executable, "-m", "venv", VENV])
    if uv:
        work.run([uv, "pip", "install", "--python", python, "--require-hashes", "--no-deps", "-r", lock])
    else:
        if not (VENV / "bin" / "pip").exists():
            work.run([python, "-m", "ensurepip"])
        work.run([python, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "-r", lock])
    _install_checkout(VENV)
    write_stamp(VENV, [lock, REQUIREMENTS / "platform.lock"])
    work.say("build/venv: ready")


def _reusable(venv: Path) -> bool:
    """Whether an environment without a fitting stamp still has a working interpreter of the right version."""
    python = venv / "bin" / "python"
    if not python.exists():
        return False
    probe = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    return subprocess.run([str(python), "-I", "-c", probe], capture_output=True, check=False).returncode == 0


def _install_checkout(venv: Path) -> None:
    """Makes `import fairlead` and the command `fairlead` work in the environment, without building anything."""
    packages = next((venv / "lib").glob("python3*/site-packages"))
    (packages / "fairlead-checkout.pth").write_text(f"{CHECKOUT}\n")
    command = venv / "bin" / "fairlead"
    command.write_text(_COMMAND.format(python=venv / "bin" / "python"))
    command.chmod(0o755)


def make_triton(uv: Path | None, *, work: Work) -> None:
    """Makes build/venv-triton.

    Raises:
        BuildError: It could not be made.
    """
    root = triton.default_directory()
    if triton.is_current(root):
        return
    work.say(f"{root.name}: installing requirements/triton.lock (55 MB Triton, 300 MB engine)")
    path = os.environ.get("PATH", "")
    environ = os.environ | {"PATH": f"{uv.parent}{os.pathsep}{path}" if uv else path, "PYTHONPATH": str(CHECKOUT)}
    work.run([sys.executable, "-m", "engines.triton.environment", "--install"], environ)
    work.say(f"{root.name}: ready")


@contextmanager
def only_one(work: Work) -> Iterator[None]:
    """Lets one process at a time change the environments."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".environments.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            work.say("another make builds the environments; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_all(*, tests: bool, triton_wanted: str) -> None:
    """Makes what is missing, in parallel.

    Args:
        tests: Whether tests shall run in build/venv.
        triton_wanted: "yes", "no", or "auto": where it can be had; its failure is then said and forgiven.

    Raises:
        BuildError: Something needed could not be made.
    """
    need_triton = triton_wanted == "yes" or (triton_wanted == "auto" and not triton.unsupported_reason())
    lock = REQUIREMENTS / ("dev.lock" if tests else "platform.lock")

    def current() -> bool:
        return is_current(VENV, lock) and (not need_triton or triton.is_current(triton.default_directory()))

    if current():
        return
    work = Work()
    with only_one(work):
        if current():
            return
        work.say("building the environments (once; later starts skip this)")
        uv = fetch_uv(work)
        with concurrent.futures.ThreadPoolExecutor() as workers, _stopped_by_signals(work):
            platform = workers.submit(make_platform, uv, tests=tests, work=work)
            engine = workers.submit(make_triton, uv, work=work) if need_triton else None
            platform.result()
            try:
                if engine is not None:
                    engine.result()
            except BuildError as error:
                if triton_wanted == "yes":
                    raise
                work.say(f"no Triton here: {error}")


@contextmanager
def _stopped_by_signals(work: Work) -> Iterator[None]:
    """Ends what runs when this process is told to end: SIGTERM from make, or Ctrl-C."""

    def end(*_: object) -> None:
        work.stop()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lock_all() -> None:
    """Resolves every requirements/*.in into its hash-locked file.

    Raises:
        BuildError: uv cannot be had, or a requirement cannot be met.
    """
    work = Work()
    uv = fetch_uv(work)
    if uv is None:
        raise BuildError("locking needs uv")
    for source in sorted(REQUIREMENTS.glob("*.in")):
        work.say(f"locking {source.name}")
        # Triton's environment takes pytriton without what its Python wrapper asks for; see triton.in.
        options = ["--no-deps"] if source.stem == "triton" else []
        command = [
            "pip",
            "compile",
            "--quiet",
            "--generate-hashes",
            "--universal",
            "--python-version",
            "3.11",
            *options,
        ]
        work.run([uv, *command, f"requirements/{source.name}", "-o", f"requirements/{source.stem}.lock"])


def main(argv: Sequence[str]) -> int:
    """Makes the environments; with arguments after `--`, becomes build/venv's Python with them."""
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="bootstrap.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tests", action="store_true", help="also what tests, lint and code generation need")
    parser.add_argument("--triton", choices=("auto", "yes", "no"), default="no", help="also the CPU Triton")
    parser.add_argument("--lock", action="store_true", help="resolve the requirements anew, and nothing else")
    options = parser.parse_args(argv[:end])
    try:
        if options.lock:
            lock_all()
            return 0
        make_all(tests=options.tests, triton_wanted=options.triton)
    except BuildError as error:
        sys.stderr.write(
            f"The environments could not be built: {error}\n"
            "Check the network (or name your package index in PIP_INDEX_URL and UV_DEFAULT_INDEX) and run make again.\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the next make goes on where this one stopped\n")
        return 130
    if command := argv[end + 1 :]:
        python = str(VENV / "bin" / "python")
        os.execv(python, [python, *command])
    return 0

"""The virtual environment inside which the CPU Triton runs: where it is, whether it can exist here, how it is made.

    python -m engines.triton.environment            says what is there
    python -m engines.triton.environment --install  makes it (about 10 s with uv on the PATH, 450 MB)

It is apart from the platform's environment because pytriton's Python backend wants numpy < 2. Only the standard
library is imported here, so that a launcher can run it before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK = CHECKOUT / "requirements" / "triton.lock"
DIRECTORY_VARIABLE = "FAIRLEAD_TRITON_ENVIRONMENT"
INSTALL_COMMAND = "python -m engines.triton.environment --install"
# numpy 1.26.4 has wheels up to 3.12; pytriton ships a backend stub for each of these.
PYTHON_VERSIONS = ("3.11", "3.12")
# The wheel is tagged manylinux_2_35_x86_64.
GLIBC_MIN = (2, 35)
_STAMP = "fairlead-lock.sha256"
_PROBE = (
    "import json, sys, sysconfig; v = sysconfig.get_config_var; "
    "print(json.dumps(['%d.%d' % sys.version_info[:2], v('LIBDIR') or '', v('INSTSONAME') or '']))"
)


class TritonEnvironmentError(RuntimeError):
    """The environment is missing, incomplete or impossible here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """A complete environment.

    Attributes:
        root: The virtual environment.
        server: The tritonserver binary.
        backends: What --backend-directory takes.
        library_path: What LD_LIBRARY_PATH must hold: the wheel's libraries, then the interpreter's own, because the
            backend's stub must load the very libpython the environment was made with.
    """

    root: Path
    server: Path
    backends: Path
    library_path: str


def default_directory() -> Path:
    """Returns where the environment is: $FAIRLEAD_TRITON_ENVIRONMENT, else build/venv-triton of this checkout."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or CHECKOUT / "build" / "venv-triton")


def unsupported_reason() -> str:
    """Returns why this platform has no Triton wheel, or an empty text where it has one."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"Triton's wheel exists for Linux on x86_64 only, this is {platform.system()} on {platform.machine()}"
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < GLIBC_MIN:
        wanted = ".".join(map(str, GLIBC_MIN))
        return f"Triton's wheel needs glibc {wanted} or newer, this system has {libc or 'another libc'} {version}"
    return ""


def is_current(root: Path) -> bool:
    """Whether the environment at `root` was made completely and from the present lock file."""
    stamp = root / _STAMP
    return stamp.is_file() and stamp.read_text() == _lock_digest()


def open_environment(root: Path) -> TritonEnvironment:
    """Finds the parts of an installed environment.

    Args:
        root: The virtual environment.

    Returns:
        Its parts.

    Raises:
        TritonEnvironmentError: Something is missing; the message names it and the command that helps.
    """
    python = root / "bin" / "python"
    if not python.exists():
        reason = unsupported_reason() or f"There is no Triton environment at {root}: run `{INSTALL_COMMAND}`"
        raise TritonEnvironmentError(reason)
    version, library_directory, _ = _probe(python)
    packages = root / "lib" / f"python{version}" / "site-packages"
    server = packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    backends = root / "triton-backends"
    for part in (server, backends / "python" / "triton_python_backend_stub", packages / "openvino_genai"):
        if not part.exists():
            raise TritonEnvironmentError(f"The Triton environment lacks {part}: run `{INSTALL_COMMAND}`")
    library_path = f"{packages / 'nvidia_pytriton.libs'}:{library_directory}"
    return TritonEnvironment(root, server, backends, library_path)


def install(root: Path, *, quiet: bool = False) -> TritonEnvironment:
    """Makes the environment, or makes it anew when the lock file has changed. Nothing is done where it is current.

    Args:
        root: Where it goes.
        quiet: Hides the installer's output unless it fails.

    Returns:
        Its parts.

    Raises:
        TritonEnvironmentError: The platform has no wheel, no usable Python was found, or the installer failed.
    """
    if is_current(root):
        return open_environment(root)
    if reason := unsupported_reason():
        raise TritonEnvironmentError(reason)
    uv = _find_uv()
    interpreter = _find_interpreter(uv)
    if root.exists() and any(root.iterdir()) and not (root / "pyvenv.cfg").exists():
        raise TritonEnvironmentError(f"{root} holds something that is not a virtual environment; choose another place")
    shutil.rmtree(root, ignore_errors=True)
    python = str(root / "bin" / "python")
    if uv:
        _run([uv, "venv", "--python", interpreter, str(root)], quiet)
        installer = [uv, "pip", "install", "--python", python]
    else:
        _run([interpreter, "-m", "venv", str(root)], quiet)
        installer = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    _run([*installer, "--no-deps", "--require-hashes", "-r", str(LOCK)], quiet)
    _lay_out_backends(root)
    environment = open_environment(root)
    (root / _STAMP).write_text(_lock_digest())
    return environment


def _lay_out_backends(root: Path) -> None:
    """Puts the Python backend and the stub of this Python side by side, as --backend-directory wants them."""
    version, _, _ = _probe(root / "bin" / "python")
    origin = root / "lib" / f"python{version}" / "site-packages" / "pytriton" / "tritonserver"
    target = root / "triton-backends" / "python"
    shutil.copytree(origin / "backends" / "python", target, dirs_exist_ok=True)
    shutil.copy2(origin / "python_backend_stubs" / version / "triton_python_backend_stub", target)


def _find_uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if beside.is_file() else "")


def _find_interpreter(uv: str) -> str:
    """Returns a Python that has wheels and a shared libpython; the name of a version where uv shall fetch one."""
    names = [sys.executable, *(path for name in PYTHON_VERSIONS if (path := shutil.which(f"python{name}")))]
    for name in names:
        try:
            version, library_directory, library = _probe(Path(name))
        except TritonEnvironmentError:
            continue
        if version in PYTHON_VERSIONS and library.startswith("libpython") and Path(library_directory, library).exists():
            return name
    if uv:
        return PYTHON_VERSIONS[0]
    raise TritonEnvironmentError(
        f"Triton needs Python {' or '.join(PYTHON_VERSIONS)} built with a shared libpython (on Debian and Ubuntu: "
        "apt-get install python3 libpython3-dev), or uv on the PATH, which fetches one"
    )


def _probe(python: Path) -> tuple[str, str, str]:
    """Returns version, library directory and library name of an interpreter."""
    try:
        done = subprocess.run([str(python), "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True)
        version, library_directory, library = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TritonEnvironmentError(f"{python} does not run: {error}") from error
    return version, library_directory, library


def _run(command: Sequence[str], quiet: bool) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise TritonEnvironmentError(f"{' '.join(command)} failed with {done.returncode}\n{done.stdout or ''}")


def _lock_digest() -> str:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: says what is there, or makes it."""
    parser = argparse.ArgumentParser(prog="python -m engines.triton.environment", description=main.__doc__)
    parser.add_argument("--install", action="store_true", help="make the environment where it is missing or outdated")
    parser.add_argument("--directory", type=Path, default=default_directory(), help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="print nothing unless it fails")
    options = parser.parse_args(argv)
    try:
        if options.install:
            install(options.directory, quiet=options.quiet)
        found = open_environment(options.directory)
    except TritonEnvironmentError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if not options.quiet:
        outdated = "" if is_current(found.root) else f" (outdated: run `{INSTALL_COMMAND}`)"
        sys.stdout.write(f"Triton environment at {found.root}{outdated}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

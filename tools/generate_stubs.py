"""Generates the package's gRPC stubs from protos/ (make proto), or checks that they are current (make verify-proto)."""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = "*_pb2*.py*"


def generate(into: Path) -> list[Path]:
    """Runs protoc over every file below protos/.

    Args:
        into: Folder that receives `fairlead/<api>/v1/*_pb2*`.

    Returns:
        The files written, relative to `into`, sorted.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PROTOS}",
        f"--python_out={into}",
        f"--mypy_out=quiet:{into}",
    ]
    command += [f"--grpc_python_out={into}", f"--mypy_grpc_out=quiet:{into}", *sources]
    subprocess.run(command, check=True)
    for folder in {into / Path(source).parent for source in sources}:
        (folder / "__init__.py").touch()
        (folder.parent / "__init__.py").touch()
    return sorted(path.relative_to(into) for path in (into / "fairlead").rglob(GENERATED))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verify", action="store_true", help="compare instead of writing; exit 1 on a difference")
    if not parser.parse_args().verify:
        print(f"{len(generate(ROOT))} files generated")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(Path(scratch))
        stored = sorted(path.relative_to(ROOT) for path in (ROOT / "fairlead").rglob(GENERATED))
        _, stale, missing = filecmp.cmpfiles(scratch, ROOT, [str(path) for path in fresh], shallow=False)
        orphans = [str(path) for path in stored if path not in fresh]
    for path in [*stale, *missing, *orphans]:
        print(f"out of date: {path} (run `make proto`)", file=sys.stderr)
    return 1 if stale or missing or orphans else 0


if __name__ == "__main__":
    sys.exit(main())

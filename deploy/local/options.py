"""What a person can choose about the local platform."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPLICAS_MAX = 64
DEFAULT_REPLICAS = {"triton": 2, "sim": 8}


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of one run.

    Attributes:
        engine: "triton", "sim", or "auto": Triton where it can run, else simulated.
        replicas: How many; 0 for the engine's default.
        http_port: OpenAI-compatible HTTP; 0 takes a free port.
        grpc_port: The native API; 0 takes a free port.
        admin_port: The admin API; 0 takes a free port.
        standbys: Further instances of each control service.
        replay_s: Seconds of recorded traffic to show at the start; 0 for none.
        run_dir: Everything this platform writes.
    """

    engine: str
    replicas: int
    http_port: int
    grpc_port: int
    admin_port: int
    standbys: int
    replay_s: float
    run_dir: Path


def parse(argv: Sequence[str]) -> Options:
    """Reads the command line; an empty value means the default, as make passes it."""
    parser = argparse.ArgumentParser(prog="make run", description=__doc__, allow_abbrev=False)

    def number(name: str, default: int, most: int) -> None:
        def convert(text: str) -> int:
            value = int(text or default)
            if not 0 <= value <= most:
                raise ValueError(text)
            return value

        convert.__name__ = f"number from 0 to {most}"
        parser.add_argument(f"--{name}", type=convert, default=default)

    parser.add_argument("--engine", choices=("", "auto", "triton", "sim"), default="auto")
    number("replicas", 0, REPLICAS_MAX)
    number("http-port", 8080, 65535)
    number("grpc-port", 8081, 65535)
    number("admin-port", 8082, 65535)
    number("standbys", 0, 2)
    number("replay", 6, 600)
    parser.add_argument("--run-dir", default="build/run")
    given = parser.parse_args(argv)
    return Options(
        engine=given.engine or "auto",
        replicas=given.replicas,
        http_port=given.http_port,
        grpc_port=given.grpc_port,
        admin_port=given.admin_port,
        standbys=given.standbys,
        replay_s=float(given.replay),
        run_dir=Path(given.run_dir or "build/run").absolute(),
    )

"""Which modules are compiled, and what those depend on."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

MODULES: Final = (
    "common/openai/sse.py",
    "common/shard_map.py",
    "common/tickets.py",
    "data_plane/gateway/app.py",
    "data_plane/gateway/generation.py",
    "data_plane/gateway/limits.py",
    "data_plane/gateway/render.py",
    "data_plane/gateway/replies.py",
    "data_plane/gateway/translate.py",
    "data_plane/relay/grpc/calls.py",
    "data_plane/relay/grpc/client_end.py",
    "data_plane/relay/grpc/framing.py",
    "data_plane/relay/grpc/limits.py",
    "data_plane/relay/grpc/pieces.py",
    "data_plane/relay/grpc/pool.py",
    "data_plane/relay/grpc/server_end.py",
    "data_plane/relay/grpc/status.py",
    "data_plane/relay/grpc/wire.py",
    "data_plane/relay/http1/answers.py",
    "data_plane/relay/http1/calls.py",
    "data_plane/relay/http1/client.py",
    "data_plane/relay/http1/client_calls.py",
    "data_plane/relay/http1/client_connection.py",
    "data_plane/relay/http1/connection.py",
    "data_plane/relay/http1/limits.py",
    "data_plane/relay/http1/requests.py",
    "data_plane/relay/http2/*.py",
    "data_plane/relay/outbox.py",
    "data_plane/router/admission.py",
    "data_plane/router/answers.py",
    "data_plane/router/assignments.py",
    "data_plane/router/attempt.py",
    "data_plane/router/attempts.py",
    "data_plane/router/books.py",
    "data_plane/router/core/*.py",
    "data_plane/router/core/policies/*.py",
    "data_plane/router/deadlines.py",
    "data_plane/router/dialects/dispatch.py",
    "data_plane/router/dialects/openai.py",
    "data_plane/router/dialects/running.py",
    "data_plane/router/dialects/triton.py",
    "data_plane/router/dialects/triton_messages.py",
    "data_plane/router/engine_messages.py",
    "data_plane/router/events.py",
    "data_plane/router/exchange.py",
    "data_plane/router/flow.py",
    "data_plane/router/giving_up.py",
    "data_plane/router/grpc_door.py",
    "data_plane/router/life.py",
    "data_plane/router/relay.py",
    "data_plane/router/routing.py",
    "data_plane/router/routing_counts.py",
    "data_plane/router/tab.py",
    "data_plane/router/tables.py",
    "data_plane/router/ticket_desk.py",
    "data_plane/router/ticket_door.py",
    "data_plane/router/ticket_ledger.py",
    "data_plane/router/ticket_messages.py",
    "data_plane/router/tracing.py",
    "data_plane/router/upstream_relay.py",
    "data_plane/router/usage_desk.py",
    "data_plane/router/usage_journal.py",
    "data_plane/router/usage_records.py",
    "data_plane/router/waiting_desk.py",
    "model_units/cost.py",
    "model_units/length.py",
    "model_units/prefix.py",
    "model_units/profiles.py",
    "model_units/text.py",
    "model_units/virtual_time.py",
)
"""What is compiled: paths and patterns below the checkout.

Here belongs what runs for every request or every token. What runs once, at start or per settings change stays
interpreted: it would cost compile time and bring nothing. Nor can these be compiled:

- a package's `__init__.py`, and what has to be imported before `common.native.install()`;
- what asks for its own `__file__` while it is imported;
- what mypyc does not take, which it says: generic dataclasses, async generators, subclasses of builtins.
"""


def chosen(root: Path, patterns: Sequence[str] = MODULES) -> list[str]:
    """Paths of the modules to compile, below `root`, sorted.

    Raises:
        ValueError: A pattern stands for nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        paths = {path.relative_to(root).as_posix() for path in root.glob(pattern) if path.name != "__init__.py"}
        if not paths:
            raise ValueError(f"no module is called {pattern}")
        found |= paths
    return sorted(found)


def module_name(path: str) -> str:
    """`a/b.py` is `a.b`."""
    return path.removesuffix(".py").replace("/", ".")


def depended_on(root: Path, paths: Iterable[str]) -> list[str]:
    """Every file below `root` whose text the compiled code of `paths` may hold something of, `paths` included.

    mypyc builds in constants of whatever is imported, compiled or not, however far away it was defined.
    """
    found = set(paths)
    waiting = sorted(found)
    while waiting:
        for name in _imported(root / waiting.pop()):
            stem = name.replace(".", "/")
            for path in (f"{stem}.py", f"{stem}.pyi", f"{stem}/__init__.py"):
                if path not in found and (root / path).is_file():
                    found.add(path)
                    waiting.append(path)
    return sorted(found)


def _imported(path: Path) -> Iterator[str]:
    """Full names of what a module imports, at its top or later; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_bytes(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)

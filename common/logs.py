"""Structured logs: one event name and its fields, as text for people or JSON for machines. Never a prompt or a key."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

_FIELDS = "fairlead_fields"


class Logger:
    """A named logger whose calls take an event and its fields.

    Args:
        name: Usually the module's name.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        """For developers."""
        self._logger.debug(event, extra={_FIELDS: fields})

    def info(self, event: str, **fields: object) -> None:
        """Something an operator may want to know."""
        self._logger.info(event, extra={_FIELDS: fields})

    def warning(self, event: str, **fields: object) -> None:
        """Something went wrong and the service copes."""
        self._logger.warning(event, extra={_FIELDS: fields})

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: object) -> None:
        """Something is broken; with a traceback where an exception is given."""
        self._logger.error(event, exc_info=exc_info, extra={_FIELDS: fields})


def get_logger(name: str) -> Logger:
    """Returns the logger of a module."""
    return Logger(name)


class _TextFormat(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, _FIELDS, {})
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        tail = "".join(f" {key}={value}" for key, value in fields.items())
        line = f"{stamp} {record.levelname:7} {record.name} {record.getMessage()}{tail}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _JsonFormat(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time_s": record.created,
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= getattr(record, _FIELDS, {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Sends every log line of the process to standard error.

    Args:
        level: "debug", "info", "warning" or "error".
        form: "text" for people, "json" for machines.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormat() if form == "json" else _TextFormat())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("aiohttp.access", "asyncio", "grpc._cython.cygrpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

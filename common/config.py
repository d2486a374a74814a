"""One way to configure every service: defaults < TOML file < environment < command line, parsed once, refused by name.

A service's settings are one frozen dataclass that extends `CommonConfig`; each field is made by `setting`. For a
service named "ratelimiter" the field `grpc_port` is set by

    grpc_port = 9000                          in the TOML file named by --config or FAIRLEAD_RATELIMITER_CONFIG
    FAIRLEAD_RATELIMITER_GRPC_PORT=9000       in the environment (FAIRLEAD_GRPC_PORT for every service at once)
    --grpc-port 9000                          on the command line
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from fairlead.errors import InvalidArgumentError

C = TypeVar("C", bound="CommonConfig")
_PREFIX = "FAIRLEAD_"
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Declares one field of a config class.

    Args:
        default: Value where nobody sets one; its type is the field's.
        help: Meaning and unit, for --help and the documentation.
        minimum: Least allowed number.
        maximum: Largest allowed number.
        choices: Allowed texts; empty allows any.
        secret: Hidden in `describe`.

    Returns:
        A dataclass field.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What every service needs to know. Service configs extend it."""

    etcd_endpoint: str = setting("127.0.0.1:2379", "etcd client address, host:port; several separated by commas")
    instance_id: str = setting("", "name of this process, stable over restarts; empty draws one")
    bind_host: str = setting("127.0.0.1", "address to listen on")
    advertise_host: str = setting("", "host others reach this process by; empty means bind_host")
    grpc_port: int = setting(0, "gRPC port; 0 takes a free one", minimum=0, maximum=65535)
    ops_port: int = setting(0, "port of /livez, /readyz and /metrics; 0 takes a free one", minimum=0, maximum=65535)
    otlp_endpoint: str = setting("", "OTLP/gRPC collector for traces, http://host:port; empty exports nothing")
    trace_sample_ratio: float = setting(1.0, "share of new traces that are recorded", minimum=0, maximum=1)
    log_level: str = setting("info", "least severity logged", choices=("debug", "info", "warning", "error"))
    log_format: str = setting("text", "log format", choices=("text", "json"))
    supervisor_pid: int = setting(0, "end when this process ends; 0 for none", minimum=0)
    drain_grace_s: float = setting(30.0, "seconds for requests in flight after SIGTERM", minimum=0, maximum=3600)

    @property
    def reachable_host(self) -> str:
        """Host that others dial: advertise_host, or bind_host where it is a real address."""
        wildcard = self.bind_host in ("0.0.0.0", "::", "")
        return self.advertise_host or ("127.0.0.1" if wildcard else self.bind_host)


def load_config(cls: type[C], service: str, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> C:
    """Reads a service's settings.

    Args:
        cls: The service's config class.
        service: Service name as in the etcd keys; part of the environment names.
        argv: Command line without the program name.
        environ: Environment; the process's own when left out.

    Returns:
        The settings, checked.

    Raises:
        InvalidArgumentError: A setting is unknown, of the wrong type or out of range; the message names it.
    """
    environ = os.environ if environ is None else environ
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types = get_type_hints(cls)
    parsed = vars(_parser(service, fields).parse_args(argv))
    own = f"{_PREFIX}{service.upper().replace('-', '_')}_"
    file = parsed.pop("config") or environ.get(f"{own}CONFIG", "")
    values: dict[str, tuple[Any, str]] = {}
    for name, value in (_read_toml(Path(file)) if file else {}).items():
        if name not in fields:
            raise InvalidArgumentError(f"{file}: unknown setting {name!r}; known are {', '.join(sorted(fields))}")
        values[name] = (value, f"{name} in {file}")
    for name in fields:
        for variable in (_PREFIX + name.upper(), own + name.upper()):
            if variable in environ:
                values[name] = (environ[variable], variable)
    for name, value in parsed.items():
        if value is not None:
            values[name] = (value, "--" + name.replace("_", "-"))
    checked = {name: _check(fields[name], types[name], value, source) for name, (value, source) in values.items()}
    return cls(**checked)


def describe(config: CommonConfig) -> dict[str, object]:
    """Returns the settings for the log, secrets hidden."""
    return {
        field.name: "***" if field.metadata["secret"] else getattr(config, field.name)
        for field in dataclasses.fields(config)
    }


def _parser(service: str, fields: Mapping[str, dataclasses.Field[Any]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=service, description=f"Runs Fairlead's {service}.", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these settings")
    for name, field in fields.items():
        text = f"{field.metadata['help']} (default: {field.default!r})".replace("%", "%%")
        parser.add_argument("--" + name.replace("_", "-"), dest=name, metavar="VALUE", help=text)
    return parser


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgumentError(f"config file {path}: {error}") from error


def _check(field: dataclasses.Field[Any], kind: type, value: Any, source: str) -> Any:
    try:
        value = _convert(kind, value)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{source}: {value!r} is not a valid {kind.__name__}") from None
    minimum, maximum, choices = (field.metadata[name] for name in ("minimum", "maximum", "choices"))
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgumentError(f"{source}: {value!r} is not a finite number")
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise InvalidArgumentError(f"{source}: {value!r} must be at least {minimum}{upper}")
    if choices and value not in choices:
        raise InvalidArgumentError(f"{source}: {value!r} must be one of {', '.join(choices)}")
    return value


def _convert(kind: type, value: Any) -> Any:
    if kind is bool and isinstance(value, str):
        if value.lower() not in (*_TRUE, *_FALSE):
            raise ValueError(value)
        return value.lower() in _TRUE
    if isinstance(value, str):
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise TypeError(value)
    return value

"""Where the CLI's settings come from: command line, environment, profile, local platform, defaults; in this order."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fairlead.cli.local_platform import LocalPlatform, find_platform, read_platform
from fairlead.errors import InvalidArgumentError, Reason, UnauthenticatedError
from fairlead.sdk.settings import DEFAULT_ADDRESS, Tls, addresses_from, api_key_from, tls_from

DEFAULT_ADMIN_ADDRESS = "127.0.0.1:8082"
"""Where a local platform serves its control plane."""
OUTPUTS = ("table", "json", "yaml")
FIELDS = ("output", "address", "admin_address", "admin_token_file", "api_key", "tls", "tls_ca_file")
"""Settings by name: `--name-with-dashes`, FAIRLEAD_NAME, and `name` in a profile."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What every command needs to know."""

    values: Mapping[str, str]
    """Value of each of FIELDS that is set anywhere."""
    sources: Mapping[str, str]
    """Where each came from, for people."""
    platform: LocalPlatform | None
    """The local platform, where its addresses are in use."""

    @property
    def output(self) -> str:
        """ "table", "json" or "yaml"."""
        return self.values.get("output", "table")

    @property
    def addresses(self) -> list[str]:
        """host:port of the routers."""
        return addresses_from(self.values.get("address", DEFAULT_ADDRESS), {})

    @property
    def admin_address(self) -> str:
        """host:port of the control plane."""
        return self.values.get("admin_address", DEFAULT_ADMIN_ADDRESS)

    @property
    def tls(self) -> Tls | None:
        """How to encrypt; None for plain text."""
        environment = {
            "FAIRLEAD_TLS": self.values.get("tls", ""),
            "FAIRLEAD_TLS_CA_FILE": self.values.get("tls_ca_file", ""),
        }
        if not environment["FAIRLEAD_TLS"]:
            del environment["FAIRLEAD_TLS"]
        return tls_from(None, environment)

    def api_key(self, tenant: str | None = None) -> str:
        """Finds the API key.

        Args:
            tenant: Take this tenant's key from the local platform; None for the key that is set, else the platform's
                first.

        Raises:
            InvalidArgumentError: There is no such tenant on the local platform, or no local platform.
            UnauthenticatedError: There is no key at all.
        """
        known = self.platform.tenants if self.platform else {}
        if tenant is not None:
            if tenant not in known:
                raise InvalidArgumentError(
                    f"the key of {tenant} is not known: --tenant works with the local platform, whose tenants are "
                    f"{', '.join(known) or 'none'}; elsewhere set FAIRLEAD_API_KEY",
                    field="tenant",
                )
            return known[tenant].key
        if "api_key" not in self.values and known:
            return next(iter(known.values())).key
        if "api_key" not in self.values:
            raise UnauthenticatedError(
                "no API key: pass --api-key KEY or set FAIRLEAD_API_KEY; an administrator makes one with "
                "`fairlead keys create TENANT`",
                reason=Reason.MISSING_KEY,
            )
        return api_key_from(self.values["api_key"], {})

    def admin_token(self) -> str:
        """Reads the admin token.

        Raises:
            UnauthenticatedError: There is none.
            InvalidArgumentError: Its file cannot be read.
        """
        path = self.values.get("admin_token_file")
        if not path:
            raise UnauthenticatedError(
                "no admin token: pass --admin-token-file FILE or set FAIRLEAD_ADMIN_TOKEN_FILE to the file the control "
                "plane was started with",
                reason=Reason.MISSING_KEY,
            )
        try:
            return Path(path).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(f"cannot read the admin token file {path}: {error}") from None


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where profiles are: FAIRLEAD_CONFIG, else fairlead/config.toml in the user's configuration folder."""
    if environment.get("FAIRLEAD_CONFIG"):
        return Path(environment["FAIRLEAD_CONFIG"])
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "fairlead" / "config.toml"


def read_profile(path: Path, name: str | None) -> dict[str, str]:
    """Reads a profile.

        [profiles.production]
        address = "router-1.example:8081,router-2.example:8081"
        admin_address = "admin.example:8082"
        admin_token_file = "~/.config/fairlead/production.token"
        tls = true

    Args:
        path: The configuration file; it need not exist.
        name: The profile; None for "default", which need not exist.

    Raises:
        InvalidArgumentError: The file is not TOML, the profile is missing, or it holds something unknown.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        if name is not None:
            raise InvalidArgumentError(f"there is no profile {name}: {path} does not exist") from None
        return {}
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgumentError(f"{path} is not TOML: {error}") from None
    profiles = data.get("profiles", {})
    unknown = sorted(set(data) - {"profiles"})
    if unknown or not isinstance(profiles, dict):
        raise InvalidArgumentError(
            f"{path}: unknown key {', '.join(unknown) or 'profiles'}: write [profiles.NAME] tables"
        )
    profile = profiles.get(name or "default")
    if profile is None:
        if name is not None:
            raise InvalidArgumentError(f"{path} has no profile {name}; it has: {', '.join(sorted(profiles)) or 'none'}")
        return {}
    for key, value in profile.items():
        if key not in FIELDS:
            raise InvalidArgumentError(f"{path}: unknown key {key} in profile; known: {', '.join(FIELDS)}", field=key)
        if not isinstance(value, str | bool):
            raise InvalidArgumentError(f"{path}: {key} must be a text or true/false", field=key)
    return {key: ("1" if value is True else "0" if value is False else value) for key, value in profile.items()}


def resolve(given: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Puts the settings together.

    The local platform is used only while neither address is set elsewhere: its keys must not be sent anywhere else.

    Args:
        given: From the command line: any of FIELDS, and `profile`.
        environment: The environment.

    Raises:
        InvalidArgumentError: A file or a value is not usable.
    """
    values: dict[str, str] = {}
    sources: dict[str, str] = {}

    def take(found: Mapping[str, str], source: str) -> None:
        for field in FIELDS:
            if found.get(field) and field not in values:
                values[field], sources[field] = found[field], source

    take(given, "command line")
    take({field: environment.get(f"FAIRLEAD_{field.upper()}", "") for field in FIELDS}, "environment")
    path, name = config_path(environment), given.get("profile") or environment.get("FAIRLEAD_PROFILE") or None
    take(read_profile(path, name), f"profile {name or 'default'} in {path}")
    platform = None
    if "address" not in values and "admin_address" not in values:
        found = find_platform(environment)
        platform = read_platform(found) if found is not None else None
        if platform is not None:
            own = {
                "address": platform.grpc,
                "admin_address": platform.admin,
                "admin_token_file": str(platform.admin_token_file or ""),
            }
            take(own, f"local platform {platform.path}")
    if values.get("output", "table") not in OUTPUTS:
        raise InvalidArgumentError(f"output must be one of {', '.join(OUTPUTS)}", field="output")
    return Settings(values, sources, platform)

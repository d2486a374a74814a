"""Settings of the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import CommonConfig, setting
from control_plane.core.keys import PEPPER_BYTES_MIN
from fairlead.errors import InvalidArgumentError

SERVICE = "control-plane"

TOKEN_BYTES_MIN = 16


@dataclass(frozen=True, kw_only=True)
class ControlPlaneConfig(CommonConfig):
    """Everything `python -m control_plane` can be told."""

    key_pepper_file: str = setting("", "file with the pepper of API keys, 32 random bytes or more; the routers' too")
    admin_token_file: str = setting("", "file with the admin API's bearer token, 16 characters or more")
    election_ttl_s: int = setting(5, "a dead sharder is replaced after about this long, seconds", minimum=1, maximum=60)
    storm_wait_s: float = setting(
        1.0, "removed replicas are collected this long before an assignment follows", minimum=0, maximum=60
    )
    assign_interval_s: float = setting(
        15.0,
        "time between two rounds that balance; replicas that come or go are dealt with at once",
        minimum=0.1,
        maximum=300,
    )
    recovery_wait_s: float = setting(
        2.0,
        "longest wait for agents and routers that are asked for the assignments they hold, seconds",
        minimum=0.1,
        maximum=60,
    )

    drift_interval_s: float = setting(
        5.0, "time between two looks at how fast replicas say they are", minimum=0.1, maximum=300
    )
    drift_start_s: float = setting(
        30.0, "a profile or replica must be off for this long before it counts", minimum=0, maximum=3600
    )

    usage_retention_days: int = setting(35, "usage older than this is deleted, days", minimum=1, maximum=400)

    def pepper(self) -> bytes:
        """Reads the pepper.

        Raises:
            InvalidArgumentError: There is none, or it is too short.
        """
        pepper = _read("key_pepper_file", self.key_pepper_file)
        if len(pepper) < PEPPER_BYTES_MIN:
            raise InvalidArgumentError(
                f"key_pepper_file {self.key_pepper_file} holds {len(pepper)} bytes; "
                f"it needs {PEPPER_BYTES_MIN} random ones: head -c 32 /dev/urandom"
            )
        return pepper

    def admin_token(self) -> str:
        """Reads the admin token, without surrounding white space.

        Raises:
            InvalidArgumentError: There is none, or it is too short, or not text.
        """
        try:
            token = _read("admin_token_file", self.admin_token_file).decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"admin_token_file {self.admin_token_file} must be plain ASCII text") from error
        if len(token) < TOKEN_BYTES_MIN:
            raise InvalidArgumentError(
                f"the token in admin_token_file {self.admin_token_file} has {len(token)} characters; "
                f"it needs at least {TOKEN_BYTES_MIN}"
            )
        return token


def _read(setting_name: str, path: str) -> bytes:
    if not path:
        raise InvalidArgumentError(f"{setting_name} is required: name a file that only this service can read")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{setting_name} {path}: {error.strerror}") from error

"""Administration: every command does its RPC, prints stable fields, and fails in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fairlead import UnavailableError
from fairlead.errors import DeadlineExceededError, Reason
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command


def test_tenants_from_creation_to_deletion(command: Command, platform: FakePlatform) -> None:
    """A tenant is created, read, renamed, suspended, let in again and deleted."""
    created = command.json("tenants", "create", "beta", "--display-name", "Beta")
    assert created == {
        "tenant_id": "beta",
        "display_name": "Beta",
        "suspended": False,
        "create_time": None,
        "etag": "1",
    }
    assert [row["tenant_id"] for row in command.json("tenants", "list")] == ["alpha", "beta"]
    assert command.json("tenants", "update", "beta", "--display-name", "B")["display_name"] == "B"
    assert command.json("tenants", "suspend", "beta")["suspended"] is True
    assert command.json("tenants", "get", "beta")["suspended"] is True
    assert command.json("tenants", "resume", "beta")["suspended"] is False
    deleted = command.json("tenants", "delete", "beta", "--yes")
    assert (deleted["keys_revoked"], deleted["reservations_deleted"]) == (1, 2)
    assert set(platform.control.tenants) == {"alpha"}


def test_long_lists_are_read_page_by_page(command: Command, platform: FakePlatform) -> None:
    """Nothing is lost behind the first page."""
    for number in range(1500):
        platform.control.tenants[f"t{number}"] = type(platform.control.tenants["alpha"])(tenant_id=f"t{number}")
    assert len(command.json("tenants", "list")) == 1501


@pytest.mark.parametrize(
    "line",
    [
        "tenants create beta",
        "tenants suspend alpha",
        "tenants delete alpha",
        "keys create alpha",
        "models create m2 --engine simulated",
        "models update tiny --replicas-max 9",
        "models delete tiny",
        "quota set alpha tiny --reserved 70",
        "quota delete alpha tiny",
        "replicas drain tiny-r1",
    ],
)
def test_dry_run_changes_nothing(command: Command, platform: FakePlatform, line: str) -> None:
    """--dry-run asks the server to check only, needs no --yes, and says so."""
    before = json.dumps([sorted(platform.control.tenants), sorted(platform.control.keys)]), str(platform.control.models)
    result = command.run(*line.split(), "--dry-run")
    assert "dry run, nothing was changed" in result.stderr
    assert [request.validate_only for request in platform.control.mutations] == [True]
    after = json.dumps([sorted(platform.control.tenants), sorted(platform.control.keys)]), str(platform.control.models)
    assert before == after


def test_deleting_asks_first(command: Command, platform: FakePlatform) -> None:
    """Without a terminal to ask at, nothing is deleted without --yes."""
    for line in ("tenants delete alpha", "models delete tiny", "quota delete alpha tiny", "replicas drain tiny-r1"):
        assert "--yes" in command.error(*line.split(), exit_code=2)
    assert platform.control.mutations == []


def test_a_secret_is_printed_once(command: Command) -> None:
    """The new key's secret is in the answer to create and in no list."""
    created = command.json("keys", "create", "alpha", "--display-name", "ci")
    assert created["secret_key"] == "fl-key0-secret"
    assert "key_hmac" not in created
    (listed,) = command.json("keys", "list", "alpha")
    assert "secret_key" not in listed
    command.run("keys", "revoke", "key0", "--yes")
    assert command.json("keys", "list") == []
    assert "never shown again" in command.run("keys", "create", "alpha").stderr


def test_models_from_options_and_files(command: Command, tmp_path: Path) -> None:
    """A model comes from options, from YAML, or from what `get -o yaml` printed; options win."""
    line = "models create m2 --engine triton --hardware cpu-2core --context-tokens 512 --target-utilization 0.7"
    created = command.json(*line.split())
    assert created["engine"]["hardware"] == "cpu-2core"
    assert created["target_utilization"] == 0.7
    printed = command.run("models", "get", "m2", "-o", "yaml").stdout
    assert yaml.safe_load(printed) == command.json("models", "get", "m2")
    file = tmp_path / "m3.yaml"
    file.write_text(printed.replace("m2", "m3"))
    copied = command.json("models", "create", "-f", str(file), "--context-tokens", "1024")
    assert (copied["model_id"], copied["context_tokens"], copied["engine"]["engine"]) == ("m3", 1024, "triton")
    assert command.json("models", "update", "m3", "--headroom", "host")["headroom"] == "host"
    assert "host" in command.run("models", "get", "m3").stdout
    file.write_text(command.run("models", "get", "m3", "-o", "yaml").stdout)
    assert command.json("models", "update", "m2", "-f", str(file))["headroom"] == "host"
    updated = command.json("models", "update", "m3", "--replicas-max", "4")
    assert (updated["replicas_max"], updated["context_tokens"]) == (4, 1024)
    piped = command.json("models", "create", "m4", "-f", "-", stdin="context_tokens: 7\n")
    assert piped["context_tokens"] == 7
    command.run("models", "delete", "m4", "--yes")
    assert [row["model_id"] for row in command.json("models", "list")] == ["m2", "m3", "tiny"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model_id: [", "not YAML"),
        ("just text", "fields of one model"),
        ("model_id: x\ncolour: red", 'no field named "colour"'),
        ("model_id: x\ncontext_tokens: many", "context_tokens"),
    ],
)
def test_a_wrong_model_file_is_explained(command: Command, tmp_path: Path, text: str, problem: str) -> None:
    """The error names the file and what is wrong in it."""
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    message = command.error("models", "create", "x", "-f", str(file), exit_code=2)
    assert problem in message
    assert "bad.yaml" in message
    assert "none.yaml" in command.error("models", "create", "x", "-f", "none.yaml", exit_code=2)


def test_quota_set_keeps_what_is_not_given(command: Command) -> None:
    """A new quota's ceiling is its reservation; later changes touch only what they name."""
    first = command.json("quota", "set", "beta", "tiny", "--reserved", "60")
    assert first["reserved_milli_mu_per_minute"] == first["burst_ceiling_milli_mu_per_minute"] == 60_000
    second = command.json("quota", "set", "beta", "tiny", "--burst", "120.5", "--tier", "2")
    assert second["reserved_milli_mu_per_minute"] == 60_000
    assert (second["burst_ceiling_milli_mu_per_minute"], second["tier"]) == (120_500, 2)
    refused = command.error("quota", "set", "beta", "tiny", "--reserved", "200", exit_code=1)
    assert "tiny may sell 160 MU/min in all" in refused
    third = command.json("quota", "set", "beta", "tiny", "--reserved", "200", "--oversell")
    assert third["burst_ceiling_milli_mu_per_minute"] == 200_000
    short = command.run("quota", "set", "beta", "tiny", "--reserved", "200")
    assert "180.0 MU/min more is sold" in short.stderr
    assert "give --reserved" in command.error("quota", "set", "gamma", "tiny", "--burst", "1", exit_code=2)


def test_quota_get_joins_reservation_grant_and_leases(command: Command, platform: FakePlatform) -> None:
    """One object holds what was bought, what is granted, what is used, and who may spend it."""
    row = command.json("quota", "get", "alpha", "tiny")
    assert row == {
        "tenant_id": "alpha",
        "model_id": "tiny",
        "reserved_milli_mu_per_minute": 60_000,
        "burst_ceiling_milli_mu_per_minute": 120_000,
        "tier": 0,
        "weight": 0,
        "etag": "1",
        "guaranteed_milli_mu_per_minute": 60_000,
        "granted_milli_mu_per_minute": 65_000,
        "wants_milli_mu_per_minute": 20_000,
        "used_milli_mu_per_minute": 12_000,
        "leases": [
            {
                "router_id": "router-1",
                "rate_milli_mu_per_minute": 60_000,
                "burst_milli_mu": 30_000,
                "safe_rate_milli_mu_per_minute": 60_000,
                "quota_milli_mu_per_minute": 0,
            }
        ],
    }
    assert command.json("quota", "list", "--tenant", "alpha") == [row]
    assert "router-1" in command.run("quota", "get", "alpha", "tiny").stdout
    platform.control.without_limiter = True
    result = command.run("quota", "list")
    assert "65.0" in result.stdout
    assert "the rate limiter cannot be asked now" in result.stderr
    assert command.json("quota", "list")[0]["leases"] is None
    assert "no quota on" in command.error("quota", "get", "nobody", "tiny", exit_code=5)


def test_quota_watch_prints_a_line_per_look(command: Command) -> None:
    """Programs get JSON Lines, people a table that changes in place."""
    line = "quota watch --interval 0.1 --count 3"
    looks = command.run("-o", "json", *line.split()).stdout.splitlines()
    assert [json.loads(look)[0]["tenant_id"] for look in looks] == ["alpha"] * 3
    assert "alpha" in command.run(*line.split()).stdout


def test_quota_watch_outlives_a_hiccup(
    command: Command, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that a look that fails is said and keeps the last rows, and that the next one is new again."""
    failures = [UnavailableError("etcd is gone", reason=Reason.STORE_UNAVAILABLE), None] * 2

    def pause(seconds: float) -> None:
        platform.control.failure = failures.pop(0)

    monkeypatch.setattr("fairlead.cli.commands.quota.time.sleep", pause)
    watched = command.run("-o", "json", "quota", "watch", "--count", "3")
    assert [json.loads(look)[0]["tenant_id"] for look in watched.stdout.splitlines()] == ["alpha"] * 2
    assert json.loads(watched.stderr)["error"]["reason"] == "STORE_UNAVAILABLE"
    shown = command.run("quota", "watch", "--count", "2").stdout
    assert "alpha" in shown
    assert "now: etcd is gone" in shown
    command.error("quota", "watch", exit_code=3)


def test_one_owner_that_fails_hides_no_other(command: Command, platform: FakePlatform) -> None:
    """Proves that whatever the allocator answers, reservations and leases are still shown."""
    platform.control.capacity.failure = DeadlineExceededError("too slow")
    (row,) = command.json("quota", "list")
    assert (row["granted_milli_mu_per_minute"], len(row["leases"])) == (None, 1)
    assert "the capacity allocator cannot be asked now: too slow" in command.run("quota", "list").stderr


def test_the_routing_policy_of_a_model(command: Command, tmp_path: Path) -> None:
    """Proves that a policy is set by the name that is shown, survives other changes and files, and can be unset."""
    assert "default" in command.run("models", "list").stdout
    assert (
        command.json("models", "update", "tiny", "--routing-policy", "late-binding")["routing_policy"] == "late_binding"
    )
    assert command.json("models", "update", "tiny", "--replicas-max", "4")["routing_policy"] == "late_binding"
    assert "late-binding" in command.run("models", "list").stdout
    assert "late-binding" in command.run("models", "get", "tiny").stdout
    file = tmp_path / "model.yaml"
    file.write_text(command.run("models", "get", "tiny", "-o", "yaml").stdout.replace("tiny", "m2"))
    assert command.json("models", "create", "-f", str(file))["routing_policy"] == "late_binding"
    file.write_text("routing_policy: prefix-match\n")
    assert command.json("models", "update", "m2", "-f", str(file))["routing_policy"] == "prefix_match"
    assert command.json("models", "update", "m2", "--routing-policy", "default")["routing_policy"] == "unspecified"
    file.write_text("routing_policy: by-moonlight\n")
    assert "routing_policy" in command.error("models", "update", "m2", "-f", str(file), exit_code=2)


def test_replicas_assignments_services(command: Command) -> None:
    """What runs where, and a drain."""
    (replica,) = command.json("replicas", "list", "--model", "tiny")
    assert (replica["state"], replica["capacity_milli_mu_per_minute"]) == ("ready", 100_000)
    assert command.json("replicas", "drain", "tiny-r1", "--yes")["state"] == "draining"
    assert "draining" in command.run("replicas", "list").stdout
    (assignment,) = command.json("assignments")
    assert assignment["generation"] == {"incarnation": 1, "number": 17}
    assert "(shared)" in command.run("assignments").stdout
    services = command.json("services")
    assert {row["service"] for row in services if row["leader"]} == {
        "autoscaler",
        "capacity",
        "control-plane",
        "ratelimiter",
    }
    assert "router" in command.run("services").stdout


def test_empty_lists_say_what_comes_next(command: Command, platform: FakePlatform) -> None:
    """A newcomer's first look at an empty platform names the next command."""
    control = platform.control
    for table in (control.tenants, control.models, control.reservations, control.replicas):
        table.clear()
    assert "fairlead tenants create" in command.run("tenants", "list").stdout
    assert "fairlead quota set" in command.run("quota", "list").stdout
    assert command.json("replicas", "list") == []
    assert command.json("capacity", "show") == []


@pytest.mark.parametrize(
    ("line", "exit_code", "said"),
    [
        ("tenants get nobody", 5, "fairlead tenants list"),
        ("tenants create alpha", 6, "exists"),
        ("tenants create BAD", 2, "lower case"),
        ("models get huge", 5, "fairlead models list"),
        ("replicas drain nobody --yes", 5, "fairlead replicas list"),
        ("tenants update alpha", 2, "nothing to change"),
        ("models update tiny", 2, "nothing to change"),
        ("models create", 2, "name the model"),
        ("quota set alpha tiny --reserved -1", 2, "must not be negative"),
        ("quota set alpha tiny --reserved nan", 2, "must be a finite number"),
        ("quota set alpha tiny --reserved inf", 2, "must be a finite number"),
        ("quota set alpha tiny --reserved 1e300", 2, "is more than 1,000,000,000 MU"),
        ("quota set alpha tiny --reserved 1e999999", 2, "is more than 1,000,000,000 MU"),
        ("quota set alpha tiny --reserved 1e99999999999999999999", 2, "must be a number"),
        ("quota list --tenant typo", 5, "fairlead tenants list"),
        ("quota list --model typo", 5, "fairlead models list"),
        ("quota watch --tenant typo", 5, "fairlead tenants list"),
        ("quota set alpha tiny --reserved 9223372036854775807", 2, "is more than"),
        ("quota set alpha tiny --reserved 0.0004", 2, "less than 0.001"),
        ("quota set alpha tiny --reserved many", 2, "must be a number"),
        ("quota set alpha tiny --burst 1e10", 2, "--burst"),
        ("models update tiny --headroom moon", 2, "--headroom"),
        ("models update tiny --routing-policy moon", 2, "'late-binding'"),
    ],
)
def test_refusals_are_one_line_with_what_to_do(command: Command, line: str, exit_code: int, said: str) -> None:
    """Each kind of refusal has its exit code and names the remedy."""
    assert said in command.error(*line.split(), exit_code=exit_code)


def test_errors_as_json(command: Command) -> None:
    """Programs get the error as an object on standard error and nothing on standard output."""
    result = command.run("tenants", "get", "nobody", "-o", "json", exit_code=5)
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["reason"]) == ("NOT_FOUND", "UNKNOWN_TENANT")
    assert set(error) == {"code", "reason", "message", "hint", "field", "retry_after_s", "metadata"}
    usage = json.loads(command.run("-o", "json", "tenants", "gte", exit_code=2).stderr)["error"]
    assert "did you mean get" in usage["message"]


def test_a_refused_token_and_a_silent_server(command: Command, platform: FakePlatform, tmp_path: Path) -> None:
    """The two first mistakes of an administrator are told apart."""
    wrong = tmp_path / "wrong.token"
    wrong.write_text("nonsense")
    assert "fairlead doctor" in command.error("tenants", "list", "--admin-token-file", str(wrong), exit_code=4)
    missing = command.error("tenants", "list", "--admin-token-file", str(tmp_path / "none"), exit_code=2)
    assert "cannot read the admin token file" in missing
    assert "cannot reach the control plane" in command.error(
        "tenants", "list", "--admin-address", "127.0.0.1:9", exit_code=3
    )
    message = command.error("tenants", "list", "--admin-address", platform.address, exit_code=3)
    assert "does not serve the admin API" in message
    platform.control.failure = UnavailableError("etcd is gone", reason=Reason.STORE_UNAVAILABLE, retry_after_s=2.0)
    assert "come back in 2.0 s" in command.error("tenants", "list", exit_code=3)

"""Policy files: what is read, what is refused and how, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.policy_files import read_policies
from fairlead.cli.policy_forms import FORMS, policy_text
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command

GOOD = """
[[quota]]
tenant = "alpha"
model = "tiny"
reserved = 70

[[quota]]
tenant = "beta"
model = "tiny"
reserved = 2.5
burst = 30
tier = 2
weight = 7
"""


@pytest.fixture
def file(tmp_path: Path, platform: FakePlatform) -> Path:
    """A good file; its second tenant exists."""
    platform.control.tenants["beta"] = admin_pb2.Tenant(tenant_id="beta", etag="1")
    path = tmp_path / "quotas.toml"
    path.write_text(GOOD)
    return path


def test_a_file_is_tried_applied_and_repeated(command: Command, platform: FakePlatform, file: Path) -> None:
    """Proves dry run, change and repetition: the same answer, written once, then nothing to do."""
    tried = command.json("quota", "apply", str(file), "--dry-run")
    assert set(platform.control.reservations) == {("tiny", "alpha")}
    assert tried["dry_run"] is True
    assert tried["created"][0]["tenant_id"] == "beta"
    (changed,) = tried["changed"]
    assert (changed["tenant_id"], changed["from"]["reserved_milli_mu_per_minute"]) == ("alpha", 60_000)
    assert changed["to"] == {
        "reserved_milli_mu_per_minute": 70_000,
        "burst_ceiling_milli_mu_per_minute": 70_000,
        "tier": 5,
        "weight": 1,
    }
    shown = command.run("quota", "apply", str(file))
    assert "+ beta on tiny: reserved 2.5, burst 30, tier 2, weight 7" in shown.stdout
    assert "~ alpha on tiny: reserved 60 → 70, burst 120 → 70" in shown.stdout
    assert "1 created, 1 changed, 0 deleted, 0 unchanged" in shown.stdout
    stored = platform.control.reservations["tiny", "beta"]
    assert (stored.reserved_milli_mu_per_minute, stored.tier, stored.weight) == (2_500, 2, 7)
    again = command.json("quota", "apply", str(file))
    assert (again["created"], again["changed"], again["unchanged"]) == ([], [], 2)
    assert command.json("quota", "apply", "-", stdin=GOOD)["unchanged"] == 2
    requests = [request for request in platform.control.mutations if not request.validate_only]
    assert len({request.request_id for request in requests}) == len(requests) == 3


def test_others_are_deleted_only_when_asked_and_confirmed(command: Command, platform: FakePlatform, file: Path) -> None:
    """Proves that quotas the file lacks stay, unless --delete-others is given and confirmed, and only on its models."""
    other = admin_pb2.Reservation(tenant_id="old", model_id="tiny", reserved_milli_mu_per_minute=1_000, etag="1")
    platform.control.reservations["tiny", "old"] = other
    platform.control.reservations["large", "old"] = other
    command.run("quota", "apply", str(file))
    assert ("tiny", "old") in platform.control.reservations
    refused = command.error("quota", "apply", str(file), "--delete-others", exit_code=2)
    assert "old on tiny" in refused
    assert "--yes" in refused
    tried = command.run("quota", "apply", str(file), "--delete-others", "--dry-run")
    assert "- old on tiny: reserved 1, burst 1" in tried.stdout
    assert "dry run, nothing was changed" in tried.stderr
    assert ("tiny", "old") in platform.control.reservations
    gone = command.json("quota", "apply", str(file), "--delete-others", "--yes")
    assert [row["tenant_id"] for row in gone["deleted"]] == ["old"]
    assert set(platform.control.reservations) == {("tiny", "alpha"), ("tiny", "beta"), ("large", "old")}


@pytest.mark.parametrize("name", ["quotas.toml", "quotas.json", "quotas.yaml"])
def test_what_is_exported_is_taken_back_unchanged(
    command: Command, platform: FakePlatform, tmp_path: Path, name: str
) -> None:
    """Proves the round trip in every form, that a stale file is refused by name, and that --overwrite insists."""
    exported = tmp_path / name
    assert "1 quotas written" in command.run("quota", "export", str(exported)).stderr
    answer = command.json("quota", "apply", str(exported), "--delete-others", "--yes")
    assert (answer["created"], answer["changed"], answer["deleted"], answer["unchanged"]) == ([], [], [], 1)
    mine = tmp_path / f"mine-{name}"
    mine.write_text(exported.read_text().replace("60", "50"))
    command.run("quota", "set", "alpha", "tiny", "--reserved", "61")
    stale = command.error("quota", "apply", str(mine), exit_code=6)
    assert "alpha on tiny: somebody changed it since you read it" in stale
    assert platform.control.reservations["tiny", "alpha"].reserved_milli_mu_per_minute == 61_000
    command.run("quota", "apply", str(mine), "--overwrite")
    assert platform.control.reservations["tiny", "alpha"].reserved_milli_mu_per_minute == 50_000
    assert [path.name for path in tmp_path.glob(".*")] == [], "nothing half-written is left"


def test_export_to_standard_output(command: Command, platform: FakePlatform) -> None:
    """Proves TOML for people, JSON and YAML on demand, an empty platform too."""
    assert 'tenant = "alpha"' in command.run("quota", "export").stdout
    assert command.json("quota", "export")["quota"][0]["reserved"] == 60
    assert yaml.safe_load(command.run("quota", "export", "-o", "yaml").stdout)["quotas"] == 1
    assert "no model none" in command.error("quota", "export", "--model", "none", exit_code=5)
    platform.control.reservations.clear()
    assert command.json("quota", "export", "--model", "tiny") == {"quotas": 0, "quota": []}
    nothing = command.run("quota", "export").stdout
    assert command.json("quota", "apply", "-", stdin=nothing)["unchanged"] == 0
    assert "cannot write" in command.error("quota", "export", "none/quotas.toml", exit_code=2)


def entry(**fields: Any) -> str:
    values = {"tenant": '"alpha"', "model": '"tiny"', "reserved": "1"} | fields
    return "[[quota]]\n" + "".join(f"{key} = {value}\n" for key, value in values.items() if value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (entry(reserved="-5"), "quotas.toml:1: quota 1 (alpha on tiny): reserved: -5 must not be negative"),
        (entry(reserved="nan"), "reserved: NaN must be a finite number"),
        (entry(reserved="inf"), "reserved: Infinity must be a finite number"),
        (entry(reserved="-inf"), "reserved: -Infinity must be a finite number"),
        (entry(reserved="0"), "reserved: must be above 0"),
        (entry(reserved="0", burst="0"), "reserved: must be above 0"),
        (entry(reserved="0.0001"), "reserved: 0.0001 is less than 0.001"),
        (entry(reserved="1e300"), "reserved: 1E+300 is more than 1,000,000,000 MU"),
        (entry(reserved="9223372036854775807"), "is more than"),
        (entry(reserved="9223372036854776"), "is more than"),
        (entry(reserved="1e999999"), "reserved: 1E+999999 is more than 1,000,000,000 MU"),
        (entry(reserved="1e-9999999"), "reserved: 1E-9999999 is less than 0.001"),
        (entry(reserved="1e99999999999999999999"), "reserved: '1e99999999999999999999' must be a number, not a text"),
        (entry(tier="0x" + "f" * 5_000), "tier: a number of thousands of digits must be"),
        (entry(reserved="0x" + "f" * 5_000), "reserved: a number of thousands of digits is more than"),
        (entry(tenant="0x" + "f" * 5_000), "tenant: 'a number of thousands of digits' must be a text"),
        ("quotas = 0x" + "f" * 5_000 + "\n" + entry(), "quotas says a number of thousands of digits and 1 are there"),
        (entry(reserved="true"), "reserved: True must be a number"),
        (entry(reserved='"100"'), "reserved: '100' must be a number, not a text"),
        (entry(reserved="[1]"), "reserved: [1] must be a number"),
        (entry(reserved=""), "reserved: is missing"),
        (entry(burst="0.5"), "burst: 0.5 must be at least the 1 reserved"),
        (entry(burst="-1"), "burst: -1 must not be negative"),
        (entry(tier="0"), "tier: 0 must be a whole number from 1 to 9"),
        (entry(tier="10"), "tier: 10"),
        (entry(tier="1.5"), "tier: 1.5"),
        (entry(tier="true"), "tier: True"),
        (entry(weight="1001"), "weight: 1001 must be a whole number from 1 to 1,000"),
        (entry(weight="-1"), "weight: -1"),
        (entry(colour='"red"'), "colour: unknown key; there are: tenant, model, reserved, burst, tier, weight, etag"),
        (entry(tenant="7"), "tenant: '7' must be a text"),
        (entry(tenant='""'), "tenant: '' must be a text"),
        (entry(tenant='"nobody"'), "quota 1 (nobody on tiny): tenant: there is no such tenant"),
        (entry(model='"none"'), "model: there is no such model"),
        (entry() + entry(), "quotas.toml:5: quota 2 (alpha on tiny): quota 1 is the same tenant and model"),
        (entry().rstrip(), "the last line has no end"),
        (entry()[:30], "not TOML, or cut off"),
        (entry() + "reserved = 2\n", "not TOML, or cut off"),
        ("", "holds no quotas"),
        ("x = 1\n", "holds no quotas"),
        ("quota = 3\n", "holds no quotas"),
        ("quota = [3]\n", "quota 1: must have tenant, model, reserved"),
        ("quotas = 2\n" + entry(burst="1", tier="5", weight="1"), "quotas says 2 and 1 are there"),
        ("quotas = 1\n" + entry(), "burst: is missing (`quotas` is set: every field is spelled out)"),
        ("quotos = 1\n" + entry(), "unknown key 'quotos'"),
        ("\ufffe\x00", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(command: Command, platform: FakePlatform, text: str, said: str) -> None:
    """Proves that every mistake is said with file, entry and field, and that nothing reaches the platform."""
    Path("quotas.toml").write_text(text)
    refused = command.run("quota", "apply", "quotas.toml", exit_code=2)
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert platform.control.mutations == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("q.json", '{"quota": [{"tenant": "alpha", "model": "tiny", "reserved": NaN}]}', "finite"),
        ("q.json", '{"quota": [{"tenant": "alpha", "model": "tiny", "reserved": 1e999}]}', "is more than"),
        ("q.json", '{"quota": [{"tenant": "alpha", "model": "tiny", "reserved": 1e99999999999999999999}]}', "'1e9999"),
        ("q.json", '{"quota": [{"tenant": "alpha", "tenant": "b"}]}', "a key stands twice"),
        ("q.json", '{"quota": [{"tenant": "alpha"', "q.json:1: not JSON, or cut off"),
        ("q.json", "[" * 100_000, "not JSON, or cut off"),
        ("q.json", '{"quota": [{"reserved": ' + "9" * 5_000 + "}]}", "not JSON, or cut off"),
        ("q.yaml", "quota:\n- tenant: alpha\n  tenant: beta\n", "q.yaml:2: not YAML, or cut off: a key stands twice"),
        ("q.yaml", "quota:\n- {tenant: alpha, model: tiny, reserved: .nan}\n", "q.yaml:2: quota 1"),
        *(
            (
                "q.yaml",
                f"quota:\n- {{tenant: alpha, model: tiny, reserved: {value}}}\n",
                f"reserved: '{value}' must be a n",
            )
            for value in ("010", "1:30", "0x1F", "0b11", "1_000", ".5", "1e99999999999999999999", "1:30.5", ".inf")
        ),
        ("q.yaml", "quota:\n- {tenant: alpha, model: tiny, reserved: 5, tier: 05}\n", "tier: '05' must be a whole"),
        ("q.yaml", "quota:\n- {tenant: alpha, model: tiny, reserved: 1e999999}\n", "is more than"),
        ("q.yaml", "quota:\n- {tenant: alpha, model: ti\n", "not YAML, or cut off"),
        ("q.yaml", "quota:\n- {tenant: alpha, model: tiny, reserved: 5}", "the last line has no end"),
        ("q.yaml", "quota:\n- !!python/object:os.system {}\n", "not YAML, or cut off"),
    ],
)
def test_other_forms_are_as_strict(command: Command, platform: FakePlatform, name: str, text: str, said: str) -> None:
    """Proves that JSON and YAML are held to the same rules, with the line where the parser tells it."""
    Path(name).write_text(text)
    assert said in command.error("quota", "apply", name, exit_code=2)
    assert platform.control.mutations == []


def test_everything_wrong_is_listed_at_once(command: Command, platform: FakePlatform) -> None:
    """Proves one line per problem and a count, in JSON too, while the last good state stays."""
    bad = entry(reserved="-1", tier="0") + entry(tenant='"nobody"') + entry(colour="1")
    Path("quotas.toml").write_text(bad)
    refused = command.run("quota", "apply", "quotas.toml", exit_code=2).stderr.splitlines()
    assert len(refused) == 5
    assert refused[-1] == "error: quotas.toml has 4 problems, nothing was changed"
    error = json.loads(command.run("-o", "json", "quota", "apply", "quotas.toml", exit_code=2).stderr)["error"]
    assert len(error["metadata"]) == 4
    assert platform.control.mutations == []
    for name in ("none.toml", "."):
        assert "cannot read" in command.error("quota", "apply", name, exit_code=2)
    Path("latin.toml").write_bytes(b"\xff")
    assert "not UTF-8" in command.error("quota", "apply", "latin.toml", exit_code=2)


def test_more_than_the_capacity_is_refused(command: Command, platform: FakePlatform) -> None:
    """Proves that a file cannot sell what is not there, unless insisted."""
    Path("quotas.toml").write_text(entry(reserved="161"))
    assert "tiny may sell 160 MU/min in all" in command.error("quota", "apply", "quotas.toml", exit_code=1)
    assert platform.control.reservations["tiny", "alpha"].reserved_milli_mu_per_minute == 60_000
    command.run("quota", "apply", "quotas.toml", "--oversell")
    assert platform.control.reservations["tiny", "alpha"].reserved_milli_mu_per_minute == 161_000


def test_numbers_of_yaml_are_exact() -> None:
    """Proves that plain decimal numbers are read as they are written, to the last digit."""
    for value, rate in (("8", 8_000), ("1e3", 1_000_000), ("0.001", 1), ("999999999.999", 10**12 - 1), ("+2.5", 2_500)):
        found = read_policies(f"quota:\n- {{tenant: a, model: 010, reserved: {value}}}\n", "yaml")
        assert not found.problems
        assert found.reservations[0].reserved_milli_mu_per_minute == rate
        assert found.reservations[0].model_id == "010"


reservations = st.lists(
    st.builds(
        admin_pb2.Reservation,
        tenant_id=st.from_regex(r"\A[a-z][a-z0-9-]{0,10}\Z"),
        model_id=st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,10}\Z"),
        reserved_milli_mu_per_minute=st.integers(1, 10**12),
        burst_ceiling_milli_mu_per_minute=st.just(10**12),
        tier=st.integers(1, 9),
        weight=st.integers(1, 1000),
        etag=st.integers(1, 2**63).map(str),
    ),
    unique_by=lambda reservation: (reservation.tenant_id, reservation.model_id),
    max_size=5,
)


@settings(deadline=None)
@given(reservations=reservations, form=st.sampled_from(FORMS))
def test_no_amount_changes_on_its_way(reservations: list[admin_pb2.Reservation], form: str) -> None:
    """Proves that what is written reads back to the same, to the last thousandth."""
    found = read_policies(policy_text(reservations, form), form)
    assert found.problems == []
    assert found.reservations == reservations


@settings(deadline=None)
@given(cut=st.integers(0, 10_000), form=st.sampled_from(FORMS))
def test_a_cut_off_export_is_always_noticed(cut: int, form: str) -> None:
    """Proves that no beginning of an exported file passes for a file, wherever it was cut."""
    whole = policy_text(
        [
            admin_pb2.Reservation(
                tenant_id=f"t{number}", model_id="m", reserved_milli_mu_per_minute=12_345, etag="1234"
            )
            for number in range(3)
        ],
        form,
    )
    part = whole[: cut % len(whole)]
    found = read_policies(part, form)
    assert found.problems or found.reservations == read_policies(whole, form).reservations, part


@settings(deadline=None)
@given(text=st.text(max_size=200), form=st.sampled_from(FORMS))
def test_no_text_breaks_the_reader(text: str, form: str) -> None:
    """Proves that any text ends in quotas or in problems."""
    found = read_policies(text, form)
    assert found.problems or not found.reservations

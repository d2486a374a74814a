"""Cost profiles, drift and events from the command; and the simulator, where it is at hand."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fairlead.admin.v1 import calibration_pb2
from fairlead.cli import candidates
from fairlead.cli.commands import root
from fairlead.cli.cost_profiles import from_file, price_mu, to_file
from fairlead.engine.v1 import engine_pb2
from fairlead.typical_requests import TYPICAL_REQUESTS
from model_units.cost import CostForm, cost
from model_units.profiles import built_in_profiles, parse_profile
from tests.support.fake_platform import FakePlatform, profile_of
from tests.unit.cli.conftest import Command

ROOT = Path(__file__).resolve().parents[3]


def test_profiles_are_listed_and_shown(command: Command, platform: FakePlatform) -> None:
    """A list says where each is in force; one is shown with intervals and class errors, in full as JSON."""
    platform.control.models["tiny"].profile_id = "llama-3.1-8b/h100/1"
    table = command.run("profiles", "list").stdout
    for said in ("llama-3.1-8b/h100/1", "2.1%", "tiny", "yes"):
        assert said in table
    (row,) = command.json("profiles", "list", "--model", "llama-3.1-8b", "--hardware", "h100")
    assert (row["built_in"], row["active_for"], row["a"]) == (True, ["tiny"], 2e-05)
    assert command.json("profiles", "list", "--hardware", "a100") == []
    assert "fairlead calibrate MODEL" in command.run("profiles", "list", "--model", "none").stdout
    shown = command.run("profiles", "show", "llama-3.1-8b/h100/1").stdout
    for said in ("1.8e-05", "2.2e-05", "10.0%", "replica-seconds per output token", "-1.2%", "made up for a test"):
        assert said in shown, said
    assert command.json("profiles", "show", "llama-3.1-8b/h100/1")["g"] == 1.3e-8
    assert "there is no cost profile x/y/9" in command.error("profiles", "show", "x/y/9", exit_code=5)


def test_a_profile_without_evidence(command: Command, platform: FakePlatform) -> None:
    """What was never stated is a dash, not zero."""
    bare = profile_of("bare", 1)
    bare.ClearField("evidence")
    platform.control.calibration.profiles[bare.profile_id] = bare
    assert "0.0%" not in command.run("profiles", "list", "--model", "bare").stdout
    shown = command.run("profiles", "show", "bare/h100/1").stdout
    assert "0.0%" not in shown
    assert "evidence" not in command.json("profiles", "export", "bare/h100/1")


def test_diff_shows_coefficients_and_prices(command: Command, platform: FakePlatform) -> None:
    """Changes are in percent, of the constants and of what typical requests cost."""
    dearer = profile_of("llama-3.1-8b", 2)
    dearer.b *= 1.5
    dearer.image_s = 0.1
    platform.control.calibration.profiles[dearer.profile_id] = dearer
    found = command.json("profiles", "diff", "llama-3.1-8b/h100/1", dearer.profile_id)
    changes = {row["name"]: row["change"] for row in found["coefficients"]}
    assert changes["a"] == 0.0
    assert changes["b"] == pytest.approx(0.5)
    assert changes["image_s"] is None
    chat = next(row for row in found["requests"] if row["name"] == "chat turn")
    assert chat["after"] - chat["before"] == pytest.approx(200 * 0.8e-4 * 100 / 60)
    table = command.run("profiles", "diff", "llama-3.1-8b/h100/1", dearer.profile_id).stdout
    assert "+50.0%" in table
    assert "chat turn" in table


@pytest.mark.parametrize("form", list(CostForm))
def test_prices_are_those_of_the_platform(form: CostForm) -> None:
    """What the command says a request costs is what the platform charges, for both forms."""
    for profile_id in built_in_profiles().ids:
        known = built_in_profiles().get(profile_id)
        message = calibration_pb2.CostProfile(a=known.a, b=known.b, d=known.d, g=known.g)
        if form is CostForm.PRODUCT:
            message.d, message.form = 0.0, calibration_pb2.COST_FORM_PRODUCT
            product_s = known.a * 900 + known.b * 70 + known.g * 900 * 70
            assert price_mu(message, 900, 70) == pytest.approx(product_s * 100 / 60)
            continue
        for _, read, made in TYPICAL_REQUESTS:
            charged = cost(known, input_tokens=read, output_tokens=made).total_milli_mu / 1000
            assert price_mu(message, read, made) == pytest.approx(charged, abs=0.003)


def test_a_profile_goes_through_a_file_and_comes_back_equal(command: Command, platform: FakePlatform) -> None:
    """What export prints, import and the platform's own reader understand, with nothing lost."""
    fake = platform.control.calibration
    text = command.run("profiles", "export", "llama-3.1-8b/h100/1", "-o", "json").stdout
    parsed = parse_profile(text)
    assert parsed.evidence is not None
    assert parsed.evidence.intervals["a"] == pytest.approx((1.8e-5, 2.2e-5))
    Path("p.json").write_text(text)
    dry = command.run("profiles", "import", "p.json", "--dry-run")
    assert "dry run" in dry.stderr
    assert set(fake.profiles) == {"llama-3.1-8b/h100/1"}
    stored = command.run("profiles", "import", "p.json")
    assert "fairlead profiles activate MODEL llama-3.1-8b/h100/2" in stored.stderr
    copied, original = fake.profiles["llama-3.1-8b/h100/2"], profile_of("llama-3.1-8b", 2)
    assert copied == original
    assert command.json("profiles", "import", "-", stdin=text)["version"] == 3


def test_every_profile_that_ships_can_be_imported() -> None:
    """The files in the source are of the same form."""
    for path in sorted((ROOT / "model_units/profiles").glob("*.json")):
        known = parse_profile(path.read_bytes())
        read = from_file(path.read_text(), path.name)
        assert (read.a, read.b, read.d, read.g, read.engine) == (known.a, known.b, known.d, known.g, known.engine)
    product = profile_of("m", 1)
    product.form, product.d, product.image_cpu_s = calibration_pb2.COST_FORM_PRODUCT, 0.0, 0.25
    product.create_time.seconds = 1_770_000_000
    parsed = parse_profile(to_file(product))
    assert (parsed.form, parsed.image_cpu_s) == (CostForm.PRODUCT, 0.25)
    assert parsed.create_time == "2026-02-02T02:40:00Z"


GOOD = json.loads(to_file(profile_of("m", 1)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ("{}", "lacks a, b, d, engine"),
        (json.dumps({**GOOD, "colour": 1}), "unknown field 'colour'"),
        (json.dumps({**GOOD, "a": "much"}), "a must be a number"),
        (json.dumps({**GOOD, "a": True}), "a must be a number"),
        (json.dumps({**GOOD, "a": float("nan")}), "a must be a number"),
        (json.dumps({**GOOD, "model": 7}), "model must be of type str"),
        (json.dumps({**GOOD, "form": "cubic"}), "attention or product"),
        (json.dumps({**GOOD, "create_time": "yesterday"}), "2026-01-31T12:00:00Z"),
        (json.dumps({**GOOD, "evidence": {"points": 10**12}}), "bad.json"),
        (json.dumps({**GOOD, "evidence": {"intervals": {"a": [1]}}}), "intervals.a must be a list of two"),
        (json.dumps({**GOOD, "evidence": {"latency_curve": [[1, "x"]]}}), "latency_curve[0] must be a number"),
        (json.dumps({**GOOD, "evidence": {"doubts": 1}}), "unknown field 'doubts'"),
        ('{"a": ' + "[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_file_is_explained(command: Command, text: str, said: str) -> None:
    """The error names the file and the field."""
    Path("bad.json").write_text(text)
    message = command.error("profiles", "import", "bad.json", exit_code=2)
    assert said in message
    assert "bad.json" in message


def test_a_file_that_cannot_be_read(command: Command) -> None:
    """Missing and binary files are told apart."""
    assert "No such file" in command.error("profiles", "import", "none.json", exit_code=2)
    Path("bytes.json").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in command.error("profiles", "import", "bytes.json", exit_code=2)


def test_activate_and_roll_back(command: Command, platform: FakePlatform) -> None:
    """A profile comes into force and goes again; dry runs change nothing; the way back is said."""
    control = platform.control
    control.models["tiny"].profile_id = "old/h100/1"
    line = ("profiles", "activate", "tiny", "llama-3.1-8b/h100/1")
    command.run(*line, "--dry-run")
    assert control.models["tiny"].profile_id == "old/h100/1"
    result = command.run(*line)
    assert "fairlead profiles rollback tiny" in result.stderr
    assert control.models["tiny"].profile_id == "llama-3.1-8b/h100/1"
    assert "llama-3.1-8b/h100/1" in command.run("models", "list").stdout
    assert command.json("profiles", "rollback", "tiny")["profile_id"] == "old/h100/1"
    control.models["tiny"].previous_profile_id = ""
    assert "no previous" in command.error("profiles", "rollback", "tiny", exit_code=1)
    assert "there is no cost profile x" in command.error("profiles", "activate", "tiny", "x", exit_code=5)


def test_drift_and_its_proposal(command: Command, platform: FakePlatform) -> None:
    """Drift is told from slow replicas and from silence, and a proposal can be accepted."""
    assert "nothing is known yet" in command.run("profiles", "drift").stdout
    drifting = calibration_pb2.DriftStatus(
        model_id="tiny", profile_id="llama-3.1-8b/h100/1", ratio=1.31, tolerance=0.1, replicas=4, replicas_drifting=3
    )
    drifting.drift_since.seconds = 1_770_000_000
    drifting.proposal.CopyFrom(profile_of("llama-3.1-8b", 2))
    slow = calibration_pb2.DriftStatus(model_id="b", ratio=1.01, tolerance=0.1, replicas=4, replicas_drifting=1)
    true = calibration_pb2.DriftStatus(model_id="c", ratio=0.99, tolerance=0.1, replicas=4)
    silent = calibration_pb2.DriftStatus(model_id="d", tolerance=0.1)
    platform.control.calibration.drift = [drifting, slow, true, silent]
    result = command.run("profiles", "drift")
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "drifts" in lines["tiny"]
    assert "+31.0%" in lines["tiny"]
    assert "replicas slow" in lines["b"]
    assert "true" in lines["c"]
    assert "not known yet" in lines["d"]
    assert "fairlead profiles accept tiny" in result.stderr
    (row,) = command.json("profiles", "drift", "tiny")
    assert (row["ratio"], row["proposal"]["version"]) == (1.31, 2)
    assert command.json("profiles", "accept", "tiny", "--dry-run")["profile_id"] == "llama-3.1-8b/h100/2"
    assert platform.control.models["tiny"].profile_id == ""
    command.run("profiles", "accept", "tiny")
    assert platform.control.models["tiny"].profile_id == "llama-3.1-8b/h100/2"
    assert "nothing is proposed" in command.error("profiles", "accept", "other", exit_code=1)


def test_events(command: Command, platform: FakePlatform) -> None:
    """Events are listed newest first, with the facts behind them in the JSON."""
    assert "nothing happened" in command.run("events").stdout
    for number, kind in enumerate(("PROFILE_DRIFT", "REPLICA_SLOW")):
        event = calibration_pb2.Event(
            event_id=f"e{number}",
            kind=kind,
            severity=calibration_pb2.EVENT_SEVERITY_WARNING,
            model_id=f"m{number}",
            message="it takes [31 %] longer: fairlead profiles drift",
            facts={"ratio": "1.31"},
        )
        event.time.seconds = 1_770_000_000
        platform.control.calibration.events.append(event)
    shown = command.run("events").stdout
    assert "it takes [31 %] longer" in shown
    assert "2026-02-02T02:40:00Z" in shown
    (row,) = command.json("events", "--model", "m1")
    assert (row["kind"], row["severity"], row["facts"]) == ("REPLICA_SLOW", "warning", {"ratio": "1.31"})
    assert len(command.json("events", "--limit", "1")) == 1
    assert "--limit" in command.error("events", "--limit", "0", exit_code=2)


def test_replicas_show_drift_and_calibration(command: Command, platform: FakePlatform) -> None:
    """A replica that is being measured says so, and one that has become slow is seen in lists and in top."""
    replica = platform.control.replicas["tiny-r1"]
    assert "drift" in command.run("replicas", "list").stdout
    replica.state, replica.drift_ratio = engine_pb2.REPLICA_STATE_CALIBRATING, 1.12
    listed = command.run("replicas", "list").stdout
    assert "calibrating" in listed
    assert "+12%" in listed
    assert "+12%" in command.run("top", "--once").stdout


def test_completion_offers_the_commands() -> None:
    """The shell completes the new commands and their options."""

    def complete(words: str, incomplete: str) -> str:
        environment = {"_FAIRLEAD_COMPLETE": "zsh_complete", "COMP_WORDS": f"{words} {incomplete}"}
        environment["COMP_CWORD"] = str(len(words.split()))
        result = CliRunner().invoke(root, prog_name="fairlead", complete_var="_FAIRLEAD_COMPLETE", env=environment)
        return result.output

    assert "calibrate" in complete("fairlead", "cal")
    assert "rollback" in complete("fairlead profiles", "ro")
    assert "--take-last-replica" in complete("fairlead calibrate", "--take")


def _completed(words: str, incomplete: str, environment: dict[str, str]) -> str:
    asked = {"_FAIRLEAD_COMPLETE": "bash_complete", "COMP_WORDS": f"{words} {incomplete}"}
    asked["COMP_CWORD"] = str(len(words.split()))
    result = CliRunner().invoke(
        root, prog_name="fairlead", complete_var="_FAIRLEAD_COMPLETE", env={**environment, **asked}
    )
    assert result.stderr == ""
    return result.output.strip()


@pytest.mark.parametrize(
    ("words", "incomplete", "offered"),
    [
        ("fairlead calibrate", "ti", "tiny"),
        ("fairlead profiles activate", "ti", "tiny"),
        ("fairlead profiles rollback", "ti", "tiny"),
        ("fairlead profiles drift", "ti", "tiny"),
        ("fairlead profiles accept", "ti", "tiny"),
        ("fairlead profiles show", "lla", "llama-3.1-8b/h100/1"),
        ("fairlead profiles export", "lla", "llama-3.1-8b/h100/1"),
        ("fairlead profiles diff x/y/1", "lla", "llama-3.1-8b/h100/1"),
        ("fairlead profiles activate tiny", "lla", "llama-3.1-8b/h100/1"),
    ],
)
def test_completion_asks_the_platform(
    platform: FakePlatform, tmp_path: Path, words: str, incomplete: str, offered: str
) -> None:
    """Names of models and cost profiles come from the control plane, and only those that begin as typed."""
    (tmp_path / "token").write_text(platform.control.token)
    environment = {"FAIRLEAD_ADMIN_ADDRESS": platform.admin_address, "FAIRLEAD_ADMIN_TOKEN_FILE": f"{tmp_path}/token"}
    assert _completed(words, incomplete, environment) == f"plain,{offered}"
    assert _completed(words, "zz", environment) == ""


def test_completion_without_a_platform_offers_nothing(tmp_path: Path) -> None:
    """No token, a wrong address and a server that never answers end in silence, the last within its second."""
    assert _completed("fairlead calibrate", "t", {}) == ""
    (tmp_path / "token").write_text("token")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        environment = {
            "FAIRLEAD_ADMIN_ADDRESS": f"127.0.0.1:{mute.getsockname()[1]}",
            "FAIRLEAD_ADMIN_TOKEN_FILE": f"{tmp_path}/token",
        }
        began_s = time.monotonic()
        assert _completed("fairlead calibrate", "t", environment) == ""
        assert _completed("fairlead profiles show", "t", environment) == ""
        assert time.monotonic() - began_s < 2 * candidates.TIMEOUT_S + 8


def _checkout(folder: Path, code: str) -> None:
    """A folder that looks like a checkout, with a simulator of our own."""
    for package in ("simulation", "model_units"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    (folder / "simulation/__main__.py").write_text(code)


def _simulate(folder: Path, *args: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs `fairlead simulate` as it runs where only the wheel is installed, in a folder below `folder`."""
    wheel, here = folder / "wheel", folder / "below"
    here.mkdir(exist_ok=True)
    if not wheel.exists():
        wheel.mkdir()
        (wheel / "fairlead").symlink_to(ROOT / "fairlead")
    code = (
        f"import sys; sys.path[:] = [*(path for path in sys.path if path not in ('', {str(ROOT)!r})), {str(wheel)!r}]; "
        "from fairlead.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *before, "simulate", *args],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_simulator_of_a_checkout_gets_every_argument(tmp_path: Path) -> None:
    """Options, --help and -o included, and the exit code pass through; a folder below the checkout will do."""
    _checkout(tmp_path, "import sys; print(sys.argv); sys.exit(7)")
    done = _simulate(tmp_path, "day.toml", "--help", "-o", "json", "--profile", "x", "--", "--seed=3")
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == str(
        [
            "fairlead simulate",
            "day.toml",
            "--help",
            "-o",
            "json",
            "--profile",
            "x",
            "--",
            "--seed=3",
        ]
    )


def test_the_output_form_of_the_command_is_the_simulators(tmp_path: Path) -> None:
    """JSON wanted before the command's name is passed on; what comes after the name has the last word."""
    _checkout(tmp_path, "import sys; print(sys.argv[1:])")
    assert _simulate(tmp_path, "day.toml", before=("-o", "json")).stdout.strip() == "['-o', 'json', 'day.toml']"
    assert _simulate(tmp_path, "day.toml", before=("-o", "table")).stdout.strip() == "['day.toml']"
    own = _simulate(tmp_path, "day.toml", "-o", "json", before=("-o", "yaml"))
    assert own.stdout.strip() == "['day.toml', '-o', 'json']"
    refused = _simulate(tmp_path, "day.toml", before=("-o", "yaml"))
    assert refused.returncode == 2
    assert "the simulator prints table or json, not yaml" in refused.stderr
    assert refused.stdout == ""


def test_without_a_simulator_the_error_says_where_it_is(tmp_path: Path) -> None:
    """Where only the command is installed, one line names the checkout and the image."""
    done = _simulate(tmp_path, "day.toml")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the simulator is not part of the installed command")
    assert "python -m simulation" in done.stderr
    assert done.stderr.count("\n") == 1

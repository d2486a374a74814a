"""fairlead explain: every number of a decision, for administrators and for tenants."""

from __future__ import annotations

import pytest

from fairlead import QuotaExceededError
from fairlead.errors import InvalidArgumentError
from tests.support.decisions import completed, refused
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command


def test_a_refusal_is_explained_with_its_numbers(command: Command, platform: FakePlatform) -> None:
    """What it needed, what was left, the quota and the lease, and when to come back; nothing was charged."""
    platform.router.decisions.append(refused("q-1"))
    shown = command.run("explain", "q-1").stdout
    for expected in (
        "q-1 was refused after 400 µs: QUOTA_USED_UP",
        "alpha on tiny · interactive",
        "needs 3.200 MU, and 1.100 MU were left",
        "come back in 6.3 s",
        "60.000 MU/min over all routers, of which this router's lease was 20.000 MU/min",
        "charged   nothing",
    ):
        assert expected in shown


def test_tries_show_their_candidates_and_the_winner(command: Command, platform: FakePlatform) -> None:
    """Each try says why its replica won; the table marks it."""
    platform.router.decisions.append(completed("q-1"))
    lines = command.run("explain", "q-1").stdout.splitlines()
    marked = [line.split() for line in lines if "▶" in line]
    assert [line[:3] for line in marked] == [["▶", "tiny-r2", "1.2"], ["▶", "tiny-r1", "240"]]
    assert any("the session's own replica" in line for line in lines)
    assert any("first token 120 ms later" in line for line in lines)


def test_json_is_complete(command: Command, platform: FakePlatform) -> None:
    """Every field of every decision, times in ISO 8601, nothing rounded; who was silent."""
    platform.router.decisions += [completed("q-1", arrive_s=1_795_000_001), refused("q-1", arrive_s=1_795_000_000)]
    platform.control.silent_routers.append("router-9")
    answer = command.json("explain", "q-1")
    assert answer["silent_routers"] == ["router-9"]
    newest, oldest = answer["decisions"]
    assert (newest["outcome"], oldest["outcome"]) == ("completed", "refused")
    assert newest["arrive_time"] == "2026-11-18T11:06:41.000Z"
    assert newest["settled_usage"] == {"input_tokens": 128, "cached_input_tokens": 64, "output_tokens": 340}
    assert newest["attempts"][1]["candidates"][1]["score"] == 0.0125
    assert oldest["bucket"]["level_milli_mu"] == 1_100
    assert oldest["retry_delay_s"] == 6.3


def test_without_admin_token_a_tenant_explains_its_own(command: Command, platform: FakePlatform) -> None:
    """The router is asked with the tenant's key; another tenant's request is not found."""
    platform.router.decisions += [refused("own"), refused("foreign", "beta")]
    tenant = Command(
        {"FAIRLEAD_ADDRESS": platform.address, "FAIRLEAD_API_KEY": "fl-key-alpha", "FAIRLEAD_ADMIN_TOKEN_FILE": ""}
    )
    assert "own was refused" in tenant.run("explain", "own").stdout
    assert "not among the newest" in tenant.error("explain", "foreign", exit_code=5)
    assert "foreign was refused" in command.run("explain", "foreign").stdout


def test_tenants_who_share_an_id_are_told_apart(command: Command, platform: FakePlatform) -> None:
    """--tenant picks; without it both are shown."""
    platform.router.decisions += [refused("q"), refused("q", "beta")]
    assert command.run("explain", "q").stdout.count("q was refused") == 2
    assert "beta on tiny" in command.run("explain", "q", "--tenant", "beta").stdout
    assert "alpha on tiny" not in command.run("explain", "q", "--tenant", "beta").stdout


def test_what_nobody_remembers_is_not_found(command: Command) -> None:
    """Exit code 5, how much routers remember, and what to do."""
    message = command.error("explain", "nothing", exit_code=5)
    assert "not among the newest" in message
    assert "check the id, and ask soon after" in message


def test_a_refused_request_says_how_to_explain_it(command: Command, platform: FakePlatform) -> None:
    """The error of generate names the command with the id; an error that no router decided on does not."""
    platform.router.refusals.append(QuotaExceededError("the quota of alpha is used up"))
    assert "`fairlead explain q-7` says why" in command.error("generate", "x", "--request-id", "q-7", exit_code=7)
    platform.router.refusals.append(InvalidArgumentError("temperature is too high"))
    assert "explain" not in command.error("generate", "x", exit_code=2)


@pytest.mark.parametrize("name", ["[red]x", "[/]"])
def test_ids_are_shown_as_they_are(command: Command, platform: FakePlatform, name: str) -> None:
    """A client's id is never taken for the terminal's markup."""
    platform.router.decisions.append(refused(name))
    assert f"{name} was refused" in command.run("explain", name).stdout

"""fairlead assignments against a fake platform."""

from __future__ import annotations

import json

import pytest

from fairlead.cli.assignments import SLICES_SHOWN_MAX, assignment_rows, more_slices, screen, slice_rows
from fairlead.sharding.v1 import sharding_pb2
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command


def test_show_tells_who_serves_whom_and_how_hot(command: Command) -> None:
    """Proves what programs get of a slice, a replica and a move, and that people see the same."""
    (row,) = command.json("assignments", "show")
    assert (row["model_id"], row["generation"], row["reason"]) == (
        "tiny",
        {"incarnation": 1, "number": 17},
        "tenant 'alpha' is hot",
    )
    assert 0 <= row["age_s"] < 60
    alpha = row["slices"][1]
    assert (alpha["tenant_id"], alpha["first_key"], alpha["replica_ids"]) == (
        "alpha",
        "0x4000000000000000",
        ["tiny-r1"],
    )
    assert (alpha["load_milli_mu_per_minute"], alpha["capacity_milli_mu_per_minute"]) == (60_000, 100_000)
    assert alpha["utilization"] == 0.6
    assert alpha["frozen_until"]
    assert alpha["keys_share"] == pytest.approx(2**-32)
    assert sum(each["keys_share"] for each in row["slices"]) == pytest.approx(1.0)
    assert (row["replicas"][0]["replica_id"], row["replicas"][0]["utilization"]) == ("tiny-r1", 0.7)
    shown = command.run("assignments", "show", "--moves").stdout
    for word in ("generation 1/17", "alpha", "(shared)", "60%", "70%", "until", "gone → tiny-r1", "removal", "4,096"):
        assert word in shown, word
    assert command.json("assignments") == [row | {"age_s": command.json("assignments")[0]["age_s"]}]


def test_one_tenants_slices(command: Command) -> None:
    """Proves that --tenant keeps the slices that hold the tenant's keys, and unknown names are refused."""
    (row,) = command.json("assignments", "show", "--tenant", "alpha")
    assert [each["tenant_id"] for each in row["slices"]] == ["alpha"]
    assert len(command.json("assignments", "moves", "--tenant", "alpha", "--model", "tiny")) == 1
    assert "fairlead tenants list" in command.error("assignments", "show", "--tenant", "typo", exit_code=5)
    assert "fairlead models list" in command.error("assignments", "show", "--model", "typo", exit_code=5)
    assert "fairlead models list" in command.error("assignments", "moves", "--model", "typo", exit_code=5)


def test_moves_say_why(command: Command) -> None:
    """Proves cause, load and lost warm tokens of a move."""
    (move,) = command.json("assignments", "moves")
    assert (move["cause"], move["from_replica_id"], move["to_replica_id"]) == ("removal", "gone", "tiny-r1")
    assert (move["load_milli_mu_per_minute"], move["warm_tokens"]) == (30_000, 4_096)
    assert "gone → tiny-r1" in command.run("assignments", "moves").stdout


def test_watch_prints_a_line_per_look(command: Command, platform: FakePlatform) -> None:
    """Proves that watching ends after --count looks and is readable line by line."""
    lines = command.run("-o", "json", "assignments", "watch", "--interval", "0.1", "--count", "2").stdout.splitlines()
    assert [json.loads(line)[0]["model_id"] for line in lines] == ["tiny", "tiny"]
    assert "alpha" in command.run("assignments", "watch", "--count", "1").stdout


def test_the_shared_options_stand_anywhere(command: Command) -> None:
    """Proves that the group alone, and with its own options before a command, is what `show` is."""
    assert json.loads(command.run("assignments", "-o", "json").stdout)[0]["model_id"] == "tiny"
    assert json.loads(command.run("assignments", "--model", "tiny", "-o", "json").stdout)
    assert "fairlead models list" in command.error("assignments", "--model", "typo", "show", exit_code=5)


def test_an_empty_platform_says_what_makes_assignments(command: Command, platform: FakePlatform) -> None:
    """Proves that nothing is an answer too."""
    platform.control.replicas.clear()
    assert command.json("assignments", "show") == []
    assert "when replicas are ready" in command.run("assignments", "show").stdout
    assert "nothing moved" in command.run("assignments", "moves").stdout


def test_damaged_and_unknown_things_are_shown_as_far_as_they_go() -> None:
    """Proves that an assignment of the old form, places out of range, replicas without load and many slices break
    nothing; and that only the hottest slices are drawn."""
    answer = sharding_pb2.ListAssignmentsResponse()
    answer.assignments.add(model_id="old")
    damaged = answer.assignments.add(model_id="m", replica_ids=["a"])
    for number in range(SLICES_SHOWN_MAX + 5):
        damaged.slices.add(first_key=number, replicas=[0, 9], load_milli_mu_per_minute=number)
    answer.replicas.add(replica_id="a", model_id="m", capacity_milli_mu_per_minute=100)
    answer.replicas.add(replica_id="b", model_id="m")
    old, row = assignment_rows(answer, "", 1e9)
    assert old["slices"] == old["replicas"] == []
    assert row["slices"][3]["replica_ids"] == ["a"]
    assert [each["utilization"] for each in row["replicas"]] == [0.0, None]
    assert slice_rows(row)[0]["load_milli_mu_per_minute"] == SLICES_SHOWN_MAX + 4
    assert "and 5 cooler slices" in more_slices(row)
    assert screen([old, row], ["note"])

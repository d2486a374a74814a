"""Which router the next try goes to."""

from __future__ import annotations

import pytest

from fairlead import InvalidArgumentError
from fairlead.sdk.addresses import REST_S, AddressBook


def test_calls_go_round() -> None:
    """Healthy routers take turns."""
    book = AddressBook(["a:1", "b:1", "c:1"])
    assert [book.pick(0.0) for _ in range(6)] == ["a:1", "b:1", "c:1", "a:1", "b:1", "c:1"]


def test_a_router_that_is_down_rests() -> None:
    """It is left alone for REST_S and comes back by itself."""
    book = AddressBook(["a:1", "b:1"])
    book.report_failure("a:1", 10.0)
    assert {book.pick(10.0 + REST_S / 2) for _ in range(4)} == {"b:1"}
    assert {book.pick(10.0 + REST_S) for _ in range(4)} == {"a:1", "b:1"}


def test_success_ends_the_rest() -> None:
    """A router that answered is used again at once."""
    book = AddressBook(["a:1", "b:1"])
    book.report_failure("a:1", 0.0)
    book.report_success("a:1")
    assert {book.pick(0.1) for _ in range(4)} == {"a:1", "b:1"}


def test_when_all_rest_the_one_resting_longest_is_tried() -> None:
    """No router is ever given up for good."""
    book = AddressBook(["a:1", "b:1"])
    book.report_failure("b:1", 1.0)
    book.report_failure("a:1", 2.0)
    assert book.pick(2.5) == "b:1"
    assert not book.has_fresh(2.5)


@pytest.mark.parametrize("bad", ["localhost", "http://a:1", "a:0", "a:70000", ":8081", "a:b"])
def test_a_wrong_address_is_refused_with_an_example(bad: str) -> None:
    """The message says how an address is written."""
    with pytest.raises(InvalidArgumentError, match=r"host:port"):
        AddressBook([bad])


def test_no_address_is_refused() -> None:
    """An empty list is a mistake, not a default."""
    with pytest.raises(InvalidArgumentError, match="FAIRLEAD_ADDRESS"):
        AddressBook([])

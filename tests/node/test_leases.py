"""Leases by client: what may be granted, what a release of which number ends, and what goes with a client."""

from __future__ import annotations

import pytest

from shoal_core import limits
from shoal_core.index import Index
from shoal_node.leases import Client, Leases

ME, OTHER = b"m" * 16, b"o" * 16


@pytest.fixture
def entries() -> Index:
    index = Index()
    for number in range(8):
        index.add(bytes([number]) * 16, 0, 100)
    return index


@pytest.fixture
def leases(entries: Index) -> Leases:
    return Leases(entries, 250)


def standing(leases: Leases, identity: bytes = ME) -> Client:
    client = leases.client(identity, "test:1")
    client.standing = True
    return client


def granted(leases: Leases, entries: Index, client: Client, entry: int) -> int:
    """As the state does it: held for the transfer, then granted."""
    entries.leases[entry] += 1
    return leases.grant(client, entry)


def test_only_a_client_whose_events_connection_stands_may_hold(leases: Leases, entries: Index) -> None:
    client = leases.client(ME, "test:1")
    assert not leases.may_grant(client, 0)
    client.standing = True
    assert leases.may_grant(client, 0)


def test_the_limit_is_in_bytes_and_what_is_held_is_counted_once(leases: Leases, entries: Index) -> None:
    client = standing(leases)
    for entry in (0, 1):
        granted(leases, entries, client, entry)
    assert client.leased_bytes == leases.leased_bytes == 200
    assert not leases.may_grant(client, 2)
    assert leases.may_grant(client, 1), "another grant of the same block costs nothing"
    granted(leases, entries, client, 1)
    assert client.leased_bytes == 200 and entries.leases[1] == 1 and leases.count == 2
    assert leases.may_grant(standing(leases, OTHER), 2), "each client has its own limit"


def test_the_limit_is_in_leases_too(leases: Leases, entries: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEASES_PER_CLIENT_MAX", 1)
    client = standing(leases)
    granted(leases, entries, client, 0)
    assert not leases.may_grant(client, 1) and leases.may_grant(client, 0)


def test_only_the_last_number_ends_a_lease(leases: Leases, entries: Index) -> None:
    client = standing(leases)
    first, second = (granted(leases, entries, client, 3) for _ in range(2))
    assert second > first
    assert not leases.release(client, 3, first), "succeeded by another"
    assert entries.leases[3] == 1
    assert leases.release(client, 3, second)
    assert entries.leases[3] == client.leased_bytes == 0
    assert not leases.release(client, 3, second), "twice is once"
    third = granted(leases, entries, client, 3)
    assert third > second
    assert not leases.release(client, 3, second), "late is void"
    assert not leases.release(client, 4, third)
    assert entries.leases[3] == 1


def test_numbers_are_of_one_client(leases: Leases, entries: Index) -> None:
    me, other = standing(leases), standing(leases, OTHER)
    mine = granted(leases, entries, me, 0)
    granted(leases, entries, other, 5)
    theirs = granted(leases, entries, other, 0)
    assert entries.leases[0] == 2 and {identity for identity, _ in leases.holders(0)} == {ME, OTHER}
    assert mine != theirs
    assert not leases.release(me, 0, theirs)
    assert leases.release(other, 0, theirs)
    assert entries.leases[0] == 1 and [identity for identity, _ in leases.holders(0)] == [ME]


def test_leases_end_with_the_events_connection_only(leases: Leases, entries: Index) -> None:
    client = standing(leases)
    leases.client(ME, "test:1")
    leases.client(ME, "test:1")
    for entry in (0, 1):
        granted(leases, entries, client, entry)
    client.asked.add(0)
    assert leases.gone(ME, events=False) == []
    assert entries.leases[0] == 1
    assert sorted(leases.gone(ME, events=True)) == [0, 1]
    assert (entries.leases[0], entries.leases[1], client.leased_bytes, client.asked) == (0, 0, 0, set())
    assert not leases.may_grant(client, 0), "a request connection that is left gets no more"
    assert ME in leases.clients
    assert leases.gone(ME, events=False) == []
    assert leases.clients == {}


def test_a_new_grant_may_be_asked_back_again(leases: Leases, entries: Index) -> None:
    client = standing(leases)
    granted(leases, entries, client, 0)
    client.asked.add(0)
    granted(leases, entries, client, 0)
    assert not client.asked


def test_the_check_sees_a_count_that_is_wrong(leases: Leases, entries: Index) -> None:
    client = standing(leases)
    granted(leases, entries, client, 0)
    leases.check()
    entries.leases[0] = 0
    with pytest.raises(AssertionError):
        leases.check()
    entries.leases[0] = 1
    client.leased_bytes += 1
    with pytest.raises(AssertionError):
        leases.check()

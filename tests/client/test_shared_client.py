"""Clients that a process shares: one for the same options, and never one that somebody has closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shoal import shared_client


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test is a process of its own."""
    monkeypatch.setattr(shared_client, "_clients", {})
    monkeypatch.setattr(shared_client, "_likewise", {})
    yield
    for client in [*shared_client._clients.values(), *shared_client._likewise.values()]:
        client.close()


def test_a_closed_one_is_replaced(address: str) -> None:
    first = shared_client.get(address=address)
    assert shared_client.get(address=address) is first
    first.close()
    second = shared_client.get(address=address)
    assert second is not first and not second.session.closed
    assert shared_client.get(address=address) is second


@pytest.mark.parametrize("table", ["_clients", "_likewise"])
def test_what_arrives_is_not_read_through_a_closed_one(address: str, table: str) -> None:
    first = shared_client.get(address=address)
    way = shared_client.way(first)
    if table == "_likewise":
        shared_client._clients.clear()
        first.close()
        first = shared_client.like(way)
    assert shared_client.like(way) is first
    first.close()
    second = shared_client.like(way)
    assert second is not first and not second.session.closed
    assert shared_client.like(way) is second

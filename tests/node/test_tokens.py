"""Tokens at the TCP door: who is let in, for how long, and how nodes let each other in."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal_core.errors import Forbidden, NodeGone, ShoalError, TokenExpired
from shoal_core.verbs import drain, hello, holding, stat
from shoal_node import admission
from tests.support import identities, waiting
from tests.support.identities import Asker, token
from tests.support.nodes import Nodes, nodes
from tests.support.running_node import InProcessNode, MakeInProcess
from tests.support.two_teams import IMAGES, A, B, configuration, data, node, operator

__all__ = ["data", "node", "nodes", "operator"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: "", "answers only to a token of its pool, and none was sent"),
        (lambda: "nonsense", "malformed"),
        (lambda: token(key=b"another key of 32 bytes, perhaps"), "signed with another key"),
        (lambda: token(pool="other"), "of pool 'other', and this is 'pool'"),
        (lambda: token("peer", key=b"a node that is not of this pool.."), "signed with another key"),
    ],
)
def test_who_is_not_let_in_is_told_why(node: InProcessNode, given: Callable[[], str], says: str) -> None:
    with pytest.raises(Forbidden, match=says) as caught:
        Asker(node.tcp_address, given())
    assert not isinstance(caught.value, TokenExpired)
    assert node.node.counters.refusals["token"] == 1
    waiting.until(lambda: not node.node.state.leases.clients, "its connection is over")


def test_a_refused_connection_ends(node: InProcessNode) -> None:
    asker = Asker.__new__(Asker)
    asker.channel = identities.links.open_channel(node.tcp_address, waiting.deadline())
    with pytest.raises(Forbidden):
        asker.call(hello.KIND, hello.Request(bytes(16), hello.REQUESTS, "test"))
    with pytest.raises(NodeGone):
        asker.call(hello.KIND, hello.Request(bytes(16), hello.REQUESTS, "test", token()))
    asker.channel.close()


def test_nothing_is_asked_before_hello(node: InProcessNode) -> None:
    asker = Asker.__new__(Asker)
    asker.channel = identities.links.open_channel(node.tcp_address, waiting.deadline())
    with pytest.raises(ShoalError, match="the first verb of a connection is hello"):
        asker.resolve("shoal://images/one")
    asker.channel.close()


def test_an_expired_token_opens_nothing(node: InProcessNode) -> None:
    with pytest.raises(TokenExpired, match="the token of team-a/pod expired 5 s ago"):
        Asker(node.tcp_address, token(lives_s=-5))
    assert node.node.counters.refusals["expired"] == 1


def test_a_token_that_ends_ends_its_connection(node: InProcessNode, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(node.tcp_address, token(datasets=IMAGES, lives_s=600))
    assert asker.resolve("shoal://images/one")[0].size == len(A)
    now_s = time.time()
    monkeypatch.setattr("shoal_node.session.time.time", lambda: now_s + 601)
    with pytest.raises(TokenExpired, match="the token of this connection has expired"):
        asker.resolve("shoal://images/one")
    with pytest.raises(NodeGone):
        asker.resolve("shoal://images/one")
    asker.channel.close()


@pytest.mark.parametrize("role", ["peer", "operator"])
def test_peers_and_operators_may_do_everything(node: InProcessNode, data: Path, role: Any) -> None:
    with Asker(node.tcp_address, token(role)) as asker:
        (found,) = asker.resolve(f"file://{data}/team-b/speech/one")
        assert asker.read(found) == B
        assert asker.call(holding.KIND, holding.Request([bytes(16)])).states == b"\0"
        assert "config" in asker.call(stat.KIND, stat.Request()).values
        assert asker.call(drain.KIND, drain.Request(drain.PROGRESS)).values["draining"] is False


def test_the_nodes_own_doors_ask_for_nothing(node: InProcessNode, operator: Asker, data: Path) -> None:
    assert operator.resolve(f"file://{data}/team-a/images/one")[0].size == len(A)
    with Asker(node.address, "nonsense") as asker:
        assert asker.terms.grants


def test_without_a_key_the_door_is_as_it_was(in_process_node: MakeInProcess, data: Path) -> None:
    node = in_process_node({"access": {"pool": "pool"}})
    with Asker(node.tcp_address) as asker, Asker(node.tcp_address, "whatever") as other:
        assert asker.resolve(f"file://{data}/team-a/images/one")[0].size == len(A)
        assert other.call(drain.KIND, drain.Request(drain.PROGRESS)).values["draining"] is False


def test_a_key_that_is_replaced_counts_at_once(node: InProcessNode, data: Path) -> None:
    new = b"the key that the pool has from now on"
    identities.key_file(data, new)
    with Asker(node.tcp_address, token(key=new, datasets=IMAGES)) as asker:
        assert asker.resolve("shoal://images/one")[0].size == len(A)
    with pytest.raises(Forbidden, match="signed with another key"):
        Asker(node.tcp_address, token())
    (data / "key").unlink()
    Asker(node.tcp_address, token(key=new)).channel.close()  # what is missing for a moment is being replaced


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_a_node_without_a_usable_key_does_not_start(
    in_process_node: MakeInProcess, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        identities.key_file(tmp_path, content)
    with pytest.raises(ShoalError, match=r"access.key_file: .*/key: (No such file|a key has at least 16 bytes)"):
        in_process_node({"access": {"key_file": str(tmp_path / "key")}})


# Nodes among themselves


def test_nodes_let_each_other_in_and_nobody_else(nodes: Nodes, data: Path) -> None:
    nodes.start(3, overrides=configuration(data))
    with Asker(nodes[1].tcp_address, token(datasets=IMAGES)) as asker:
        for number in range(12):
            (data / "team-a" / "images" / f"{number}").write_bytes(A + bytes([number]))
            (found,) = asker.resolve(f"shoal://images/{number}")
            assert asker.read(found) == A + bytes([number])
    assert nodes.total("peer_bytes") > 0, "some came from the node that owns them"
    peers = nodes[1].node.peers
    assert peers is not None and peers.links.opened
    assert sum(node.node.counters.refusals.total() for node in nodes.running.values()) == 0


def test_a_node_with_another_key_gets_nothing(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    nodes.start(1, overrides=configuration(data))
    other = identities.key_file(tmp_path / "team-a", b"another key of 32 bytes, perhaps")
    section = {"access": identities.access_section(key=other), "datasets": configuration(data)["datasets"]}
    nodes.add(2, overrides=section)
    nodes.publish()
    with Asker(nodes[2].address) as asker:
        for number in range(8):
            (data / "team-a" / "images" / f"{number}").write_bytes(A)
            (found,) = asker.resolve(f"shoal://team-a.images/{number}")
            assert asker.read(found, inline=True) == A  # from the origin, which is its own to read
    waiting.until(lambda: nodes[1].node.counters.refusals["token"] > 0, "it was turned away")
    assert nodes.total("peer_bytes") == 0


def test_links_between_nodes_outlive_their_tokens(nodes: Nodes, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PEER_TOKEN_S", 6)  # within a second of what links still use
    nodes.start(2, overrides=configuration(data))
    ends = time.monotonic() + 4
    number = 0
    with Asker(nodes[1].address) as asker:
        while time.monotonic() < ends or number < 20:
            number += 1
            (data / "team-a" / "images" / f"{number}").write_bytes(A)
            (found,) = asker.resolve(f"shoal://team-a.images/{number}")
            assert asker.read(found, inline=True) == A
    peers = nodes[1].node.peers
    assert peers is not None and peers.links.opened > 2, "connections were made anew"
    assert sum(node.node.counters.refusals.total() for node in nodes.running.values()) == 0
    assert nodes.total("peer_bytes") > 0


# The control door


def test_only_an_operator_drains(in_process_node: MakeInProcess, data: Path) -> None:
    node = in_process_node(configuration(data) | {"doors": {"control": "127.0.0.1:0"}})
    address = next(each for each in node.node.addresses if each.startswith("control:")).removeprefix("control:")

    def post(authorization: str | None) -> tuple[int, str]:
        connection = http.client.HTTPConnection(address, timeout=10)
        headers = {} if authorization is None else {"Authorization": authorization}
        connection.request("POST", "/drain", headers=headers)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, text

    for given, says in (
        (None, "Authorization: Bearer TOKEN"),
        ("Basic abc", "Authorization: Bearer TOKEN"),
        ("Bearer ", "Authorization: Bearer TOKEN"),
        ("Bearer nonsense", "malformed"),
        (f"Bearer {token()}", "the token of team-a/pod is a reader's, not an operator's"),
        (f"Bearer {token('peer')}", "is a peer's, not an operator's"),
        (f"Bearer {token('operator', lives_s=-1)}", "expired"),
    ):
        status, text = post(given)
        assert status == 401 and says in text, (given, text)
    assert not node.node.draining
    status, text = post(f"Bearer {token('operator')}")
    assert status == 202 and '"draining":true' in text and node.node.draining

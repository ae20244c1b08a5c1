"""A client and its token: read anew for each connection, renewed before it ends, never worse than no node at all."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shoal
from shoal import shared_client
from shoal.cli import main
from shoal.client import Client
from shoal.session import Refused
from shoal_core.errors import Forbidden, NodeGone, NotFound
from shoal_core.verbs import token as verb
from shoal_transport import links
from tests.support import running_node, waiting
from tests.support.identities import VolumeDirectory, token
from tests.support.nodes import Nodes, nodes
from tests.support.running_node import InProcessNode, MakeInProcess
from tests.support.two_teams import IMAGES, A, configuration, data, node

__all__ = ["data", "node", "nodes"]


class TokenOnDisk:
    """The file that a driver keeps fresh."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "token"
        self.put()

    def put(self, lives_s: float = 600, **claims: Any) -> None:
        self.write(token(datasets=IMAGES, lives_s=lives_s, **claims))

    def write(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text + "\n")
        os.replace(new, self.path)


@pytest.fixture
def held(tmp_path: Path) -> TokenOnDisk:
    return TokenOnDisk(tmp_path)


@pytest.fixture
def client(node: InProcessNode, held: TokenOnDisk) -> Iterator[Client]:
    with shoal.connect(node.tcp_address, token_file=str(held.path), deadline_s=10) as connected:
        yield connected


def refusals(node: InProcessNode) -> int:
    return node.node.counters.refusals.total()


def put_nodes_clock_ahead(monkeypatch: pytest.MonkeyPatch, seconds: float = 700) -> None:
    """As sessions see it: beyond the end of what was valid when a connection was opened."""
    clock = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
    monkeypatch.setattr("shoal_node.session.time", clock)


def test_a_client_reads_with_its_token(node: InProcessNode, client: Client) -> None:
    assert client.read("shoal://images/one") == A
    assert [info.url for info in client.list("shoal://images/")] == ["shoal://images/one"]
    with pytest.raises(Forbidden, match="not for team-a/pod, which may read shoal://images"):
        client.read("shoal://team-b.speech/one")
    assert client.stats().hits["direct"] == 0 and client.stats().fallbacks == 0


def test_client_json_names_the_token(
    node: InProcessNode, held: TokenOnDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "client.json"
    gone = f"unix:{tmp_path}/node.sock"
    file.write_text(json.dumps({"addresses": [gone, node.tcp_address], "token_file": str(held.path)}))
    monkeypatch.setenv("SHOAL_CONFIG", str(file))
    with shoal.connect() as client:
        assert client.read("shoal://images/one") == A
        again: Client = pickle.loads(pickle.dumps(client))
        with again:
            assert again.read("shoal://images/one") == A
        assert shared_client.way(client)[-1] == str(held.path)


def test_each_connection_reads_the_token_as_it_is_now(
    node: InProcessNode, held: TokenOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.put(lives_s=links.TOKEN_MARGIN_S + 2)
    with shoal.connect(node.tcp_address, token_file=str(held.path), deadline_s=10) as client:
        client.read("shoal://images/one")
        session = client.session
        assert session.attachment is not None
        (first,) = session.attachment._idle
        assert 0 < first.expires_s - time.time() <= links.TOKEN_MARGIN_S + 2
        held.put()
        waiting.until(lambda: not links.is_usable(first), "its token is about to end")
        assert client.read("shoal://images/one") == A
        assert first.broken, "an idle channel is not used again"
        (second,) = session.attachment._idle
        assert second.expires_s - time.time() > 500
        assert client.read("shoal://images/one") == A and session.attachment._idle == [second]
    assert refusals(node) == 0


def test_an_answer_that_comes_too_late_is_asked_for_once_more(
    node: InProcessNode, client: Client, held: TokenOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's clock is ahead of ours: it refuses what we thought would still do."""
    client.read("shoal://images/one")
    held.put(lives_s=6000)
    put_nodes_clock_ahead(monkeypatch)
    assert client.read("shoal://images/one") == A
    assert node.node.counters.refusals["expired"] == 1
    client.list("shoal://images/")
    assert node.node.counters.refusals["expired"] == 1 and client.stats().fallbacks == 0


def test_a_verb_is_asked_once_more_as_well(
    node: InProcessNode, client: Client, held: TokenOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.list("shoal://images/")
    held.put(lives_s=6000)
    put_nodes_clock_ahead(monkeypatch)
    assert len(client.list("shoal://images/")) == 1
    held.put(lives_s=600)
    assert client.session.attachment is not None
    client.session.attachment.close_idle()
    with pytest.raises(Refused, match="the token of this connection has expired"):
        client.list("shoal://images/")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "token file /.*token: No such file or directory"),
        ("", "answers only to a token of its pool, and none was sent"),
        ("not\xe4a token", "token file /.*token: holds no token"),
        ("nonsense", "the token is malformed"),
        (token(key=b"another key of 32 bytes, perhaps"), "signed with another key"),
        (token(lives_s=-5), "expired [0-9]+ s ago"),
    ],
)
def test_who_is_not_let_in_hears_why(node: InProcessNode, held: TokenOnDisk, given: str | None, says: str) -> None:
    held.path.unlink() if given is None else held.write(given)
    with shoal.connect(node.tcp_address, token_file=str(held.path), deadline_s=10) as client:
        for _ in range(2):  # the second time from memory
            with pytest.raises(Forbidden, match=says):
                client.read("shoal://images/one")
            with pytest.raises(Forbidden, match=says):
                client.list("shoal://images/")
        assert client.terms() is None


def test_who_is_not_let_in_reads_from_the_origin_if_it_can(
    node: InProcessNode, held: TokenOnDisk, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.put(lives_s=-5)
    monkeypatch.setattr("shoal.session._BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr("shoal.session._BACKOFF_MAX_S", 0.05)
    datasets = {"images": f"file://{data}/team-a/images"}
    with shoal.connect(node.tcp_address, token_file=str(held.path), deadline_s=10, datasets=datasets) as client:
        assert client.read("shoal://images/one") == A
        assert client.stats().fallbacks == 1, "and that is counted"
        with pytest.raises(NotFound):
            client.read("shoal://images/two")
        held.put()
        waiting.until(lambda: client.terms() is not None, "with a good token it is let in again")
        direct = client.stats().fallbacks
        assert client.read("shoal://images/one") == A and client.stats().fallbacks == direct


def test_a_token_that_ends_while_connected_leads_to_the_origin_and_back(
    node: InProcessNode, held: TokenOnDisk, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.session._BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr("shoal.session._BACKOFF_MAX_S", 0.05)
    datasets = {"images": f"file://{data}/team-a/images"}
    with shoal.connect(node.tcp_address, token_file=str(held.path), deadline_s=10, datasets=datasets) as client:
        assert client.read("shoal://images/one") == A
        held.put(lives_s=-5)  # the driver is down
        attachment = client.session.attachment
        assert attachment is not None
        for channel in attachment._idle:
            channel.expires_s = time.time()
        assert client.read("shoal://images/one") == A and client.stats().fallbacks == 1
        held.put()
        waiting.until(lambda: client.terms() is not None, "it is back")
        assert client.read("shoal://images/one") == A and client.stats().fallbacks == 1


def test_no_token_goes_over_a_socket_of_this_machine(node: InProcessNode, tmp_path: Path) -> None:
    with shoal.connect(node.address, token_file=str(tmp_path / "not-there")) as client:
        assert client.read("shoal://team-a.images/one") == A


# Many nodes


def objects(data: Path, count: int) -> list[str]:
    """Written; their URLs, as a reader of team-a says them."""
    for number in range(count):
        (data / "team-a" / "images" / f"{number}").write_bytes(A + bytes([number]))
    return [f"shoal://images/{number}" for number in range(count)]


def test_a_reader_elsewhere_shows_its_token_to_every_owner(nodes: Nodes, data: Path, held: TokenOnDisk) -> None:
    nodes.start(3, overrides=configuration(data))
    with shoal.connect(nodes[1].tcp_address, token_file=str(held.path), deadline_s=20) as client:
        urls = objects(data, 24)
        assert client.read_many(urls) == [A + bytes([number]) for number in range(24)]
        assert {node.node.state.dram.__len__() > 0 for node in nodes.running.values()} == {True}
        assert client.stats().fallbacks == 0 and client._routed.links.opened >= 3
        nodes.stop(2)
        assert client.read_many(urls) == [A + bytes([number]) for number in range(24)]
    assert sum(map(refusals, nodes.running.values())) == 0


def test_a_plan_reaches_the_owners_with_a_token(nodes: Nodes, data: Path, held: TokenOnDisk) -> None:
    pytest.importorskip("torch")
    from shoal.torch import DataLoader, Dataset

    nodes.start(2, overrides=configuration(data))
    objects(data, 64)
    with shoal.connect(nodes[1].tcp_address, token_file=str(held.path), deadline_s=20) as client:
        loader = DataLoader(Dataset("shoal://images/", client=client), batch_size=5, shuffle=True, collate_fn=list)
        got = [bytes(sample["data"]) for batch in loader for sample in batch]
        assert sorted(got) == [A, *(A + bytes([number]) for number in range(64))]
        waiting.until(lambda: nodes.total("loader_steps") == len(loader), "the nodes heard of the steps")
        assert all(client_of_plans(node) for node in nodes.running.values()), "every owner was told its part"
    assert sum(map(refusals, nodes.running.values())) == 0


def client_of_plans(node: InProcessNode) -> bool:
    """Whether anybody's loader keeps a stream there: over TCP, on a connection that showed a token."""
    with node.node.step() as state:
        return any(client.standing for client in state.leases.clients.values())


def test_a_volume_without_shared_memory_asks_its_own_node_for_everything(nodes: Nodes, data: Path) -> None:
    with running_node.short_directory() as directory:
        volumes = VolumeDirectory(directory)
        nodes.start(2, overrides=configuration(data, volumes_directory=str(volumes.path / "2")))
        volumes = VolumeDirectory(volumes.path / "2")
        socket = volumes.publish("one", "team-a", IMAGES)
        waiting.until(socket.exists, "the socket is made")
        urls = objects(data, 16)
        with shoal.connect(f"unix:{socket}", deadline_s=20) as client:
            assert client.read_many(urls) == [A + bytes([number]) for number in range(16)]
            assert client._routed.active and client._routed.local and not client._routed.links.opened
            assert client.stats().hits["shared memory"] == 0 == client.stats().fallbacks
        assert nodes.total("peer_bytes") > 0


def test_who_may_do_everything_at_one_node_reaches_them_all(
    nodes: Nodes, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `kubectl shoal` does, in the pod of one node: the node signs what opens the others."""
    nodes.start(3, overrides=configuration(data))
    urls = [url.replace("images/", "team-a.images/") for url in objects(data, 24)]
    with shoal.connect(nodes[1].address, deadline_s=20) as client:
        assert client.read_many(urls) == [A + bytes([number]) for number in range(24)]
        assert all(found.resident for found in client.inspect(urls))
    assert main(["locate", urls[0], "--json", "--address", nodes[1].address]) == 0
    assert main(["nodes", "--address", nodes[1].address]) == 0
    assert "does not answer" not in capsys.readouterr().err
    with shoal.connect(nodes[1].tcp_address) as stranger, pytest.raises(Forbidden):
        stranger.session.call(verb.KIND, verb.Request(), waiting.deadline())


def test_a_volume_gives_no_token_for_everything(nodes: Nodes, data: Path) -> None:
    with running_node.short_directory() as directory:
        volumes = VolumeDirectory(directory)
        nodes.start(1, overrides=configuration(data, volumes_directory=str(volumes.path / "1")))
        socket = VolumeDirectory(volumes.path / "1").publish("one", "team-a", IMAGES)
        waiting.until(socket.exists, "the socket is made")
        with shoal.connect(f"unix:{socket}") as client, pytest.raises(Forbidden):
            client.session.call(verb.KIND, verb.Request(), waiting.deadline())


def test_a_refusal_is_as_good_as_a_node_that_is_gone() -> None:
    error = Refused("tcp:host:1: no")
    assert isinstance(error, NodeGone) and isinstance(error, Forbidden) and isinstance(error, PermissionError)
    assert str(error) == "tcp:host:1: no"


def test_the_doctor_shows_the_token_and_knows_doors_that_want_one(
    node: InProcessNode,
    held: TokenOnDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(**config: Any) -> str:
        file = tmp_path / "client.json"
        file.write_text(json.dumps(config))
        monkeypatch.setenv("SHOAL_CONFIG", str(file))
        main(["doctor"])
        return capsys.readouterr().out

    on_the_host = said(addresses=[node.address])
    assert "answers only to tokens of its pool" in on_the_host
    assert "answers to this pod's token" in said(addresses=[node.address], token_file=str(held.path))
    elsewhere = said(addresses=[node.tcp_address], token_file=str(held.path))
    assert "node-1, standing" in elsewhere and "0 failed" in elsewhere
    held.put(lives_s=-5)
    assert "the CSI driver of its node: is that running?" in said(addresses=[node.address], token_file=str(held.path))


def test_the_doctor_knows_a_volume_without_shared_memory(
    in_process_node: MakeInProcess, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_node.short_directory() as directory:
        volumes = VolumeDirectory(directory / "volumes")
        in_process_node(configuration(data, volumes_directory=str(volumes.path)))
        socket = volumes.publish("one", "team-a", IMAGES)
        waiting.until(socket.exists, "the socket is made")
        assert main(["doctor", "--address", f"unix:{socket}"]) == 0
        said = capsys.readouterr().out
        assert "not with this reader: bytes come through the socket" in said and "0 failed" in said
        assert main(["stat", "--address", f"unix:{socket}"]) == 0

"""Volumes: each socket is an identity, made and taken away as its directory says, over restarts and bad files."""

from __future__ import annotations

import logging
import os
import resource
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal_core.errors import Forbidden, NodeGone, ShoalError
from shoal_core.verbs import get, hello, map
from shoal_core.verbs import stat as stat_verb
from shoal_node import volumes as volumes_module
from tests.support import running_node, waiting
from tests.support.identities import Asker, VolumeDirectory
from tests.support.running_node import InProcessNode, MakeInProcess, MakeProcess
from tests.support.two_teams import IMAGES, SPEECH, A, B, configuration, data

__all__ = ["data"]


@pytest.fixture
def volumes() -> Iterator[VolumeDirectory]:
    with running_node.short_directory() as directory:
        yield VolumeDirectory(directory / "volumes")


@pytest.fixture
def node(in_process_node: MakeInProcess, data: Path, volumes: VolumeDirectory) -> InProcessNode:
    return in_process_node(configuration(data, volumes_directory=str(volumes.path)))


def connected(socket: Path) -> shoal.Client:
    """A pod's client, once the socket is there."""
    waiting.until(socket.exists, f"{socket} is made")
    return shoal.connect(f"unix:{socket}", deadline_s=10)


def ended(asker: Asker) -> bool:
    """Whether the connection of the asker, which waits for nothing, was ended by the node."""
    try:
        return asker.channel.listen(0.001) is not None
    except NodeGone:
        return True


def test_two_identities_at_one_node_see_each_its_own(node: InProcessNode, volumes: VolumeDirectory) -> None:
    with (
        connected(volumes.publish("one", "team-a", IMAGES)) as a,
        connected(volumes.publish("two", "team-b", SPEECH)) as b,
    ):
        assert a.read("shoal://images/one") == A and b.read("shoal://speech/one") == B
        assert [info.url for info in a.list("shoal://images/")] == ["shoal://images/one"]
        for client, url in ((a, "shoal://team-b.speech/one"), (a, "shoal://speech/one"), (b, "shoal://images/one")):
            with pytest.raises(Forbidden, match=r"not for team-.*/pod, which may read shoal://"):
                client.read(url)
            with pytest.raises(Forbidden):
                client.list(url)
        learned = b.info("shoal://speech/one")
        with pytest.raises(Forbidden, match="an object of another data set or namespace"):
            a.read(learned)
        with pytest.raises(Forbidden, match="the verb evict"):
            a.evict("shoal://images/one")
        with pytest.raises(Forbidden, match="the verb dataset"):
            a.declare_dataset("mine", "s3://bucket")
        assert a.inspect(["shoal://images/one"])[0].dram_bytes == len(A)
        assert a.node_stats()["node"] == "node-1" and a.node_stats()["addresses"] == [node.tcp_address]
    assert node.node.volume_count == 2


def test_the_socket_is_for_everybody_who_sees_it(node: InProcessNode, volumes: VolumeDirectory) -> None:
    before = os.umask(0o077)
    try:
        socket = volumes.publish("one", "team-a", IMAGES)
        waiting.until(socket.exists, "the socket is made")
        found = socket.stat()
        assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o666
        assert os.listdir(socket.parent) == ["node.sock"], "and nothing else is left in what the pod sees"
    finally:
        os.umask(before)


def test_what_was_withdrawn_ends_within_a_second(node: InProcessNode, volumes: VolumeDirectory) -> None:
    socket = volumes.publish("one", "team-a", IMAGES | {"more": "team-b.speech"})
    waiting.until(socket.exists, "the socket is made")
    with Asker(f"unix:{socket}") as asker, Asker(f"unix:{socket}", role=hello.EVENTS) as events:
        assert asker.resolve("shoal://more/one")[0].size == len(B)
        volumes.publish("one", "team-a", IMAGES)
        begin = time.monotonic()
        waiting.until(lambda: ended(events) and ended(asker), "connections of before are over")
        assert time.monotonic() - begin < 1
        with pytest.raises(NodeGone):
            asker.resolve("shoal://images/one")
    waiting.until(socket.exists, "there is a socket again")
    with Asker(f"unix:{socket}") as asker:
        assert asker.resolve("shoal://images/one")[0].size == len(A)
        assert asker.resolve("shoal://more/one")[0].code == Forbidden.code


@pytest.mark.parametrize("how", ["file", "directory"])
def test_a_volume_that_goes_takes_its_reader_with_it(node: InProcessNode, volumes: VolumeDirectory, how: str) -> None:
    socket = volumes.publish("one", "team-a", IMAGES)
    other = volumes.publish("two", "team-b", SPEECH)
    waiting.until(lambda: socket.exists() and other.exists(), "the sockets are made")
    with Asker(f"unix:{socket}") as asker, Asker(f"unix:{other}") as bystander:
        volumes.remove("one") if how == "directory" else (volumes.place("one") / "access.json").unlink()
        begin = time.monotonic()
        waiting.until(lambda: ended(asker), "the connection is over")
        assert time.monotonic() - begin < 1
        waiting.until(lambda: not socket.exists() and node.node.volume_count == 1, "nobody listens there")
        assert bystander.resolve("shoal://speech/one")[0].size == len(B)


def test_leases_end_with_the_volume(in_process_node: MakeInProcess, data: Path, volumes: VolumeDirectory) -> None:
    access = configuration(data, volumes_directory=str(volumes.path), share_memory_with=["team-a"])
    node = in_process_node(access)
    client = connected(volumes.publish("one", "team-a", IMAGES))
    with client.view("shoal://images/one") as view:
        assert view.zero_copy and node.node.state.leases.count == 1
        volumes.remove("one")
        waiting.until(lambda: not node.node.state.leases.clients, "its leases are over")
    client.close()


@pytest.mark.parametrize(("shared", "grants"), [([], False), (["team-b"], False), (["team-a"], True), (["*"], True)])
def test_memory_is_shared_with_those_who_are_named(
    in_process_node: MakeInProcess, data: Path, volumes: VolumeDirectory, shared: list[str], grants: bool
) -> None:
    node = in_process_node(configuration(data, volumes_directory=str(volumes.path), share_memory_with=shared))
    socket = volumes.publish("one", "team-a", IMAGES)
    with connected(socket) as client:
        terms = client.terms()
        assert terms is not None and terms.grants is grants
        for _ in range(3):
            assert client.read("shoal://images/one") == A
        hits = client.stats().hits
        assert bool(hits["shared memory"]) is grants and bool(hits["unix"]) is not grants
    with Asker(f"unix:{socket}") as asker, Asker(f"unix:{socket}", role=hello.EVENTS, identity=asker.identity):
        (found,) = asker.resolve("shoal://images/one")
        request = get.Request(
            [found.fingerprint], [get.Item(0, 0, 0, 4)], [], 10_000, False, likely=[get.Ahead(0, 0, 1)]
        )
        reply: get.Reply = asker.call(get.KIND, request)
        assert isinstance(reply.items[0], get.Grant) is grants and bool(reply.also) is grants
        if not grants:
            with pytest.raises(Forbidden, match="this node shares no memory with namespace team-a"):
                asker.call(map.KIND, map.Request(0))
    assert node.node.counters.fallbacks["lease_limit"] == 0, "that is no fallback, but how it was configured"


def test_derived_objects_are_kept_apart_and_may_be_replaced(node: InProcessNode, volumes: VolumeDirectory) -> None:
    from shoal import derived

    with (
        connected(volumes.publish("one", "team-a", IMAGES)) as a,
        connected(volumes.publish("two", "team-b", SPEECH)) as b,
        connected(volumes.publish("three", "team-a", IMAGES)) as colleague,
        shoal.connect(node.address) as everybody,
    ):
        for client, content in ((a, b"a's"), (b, b"b's"), (everybody, b"everybody's")):
            assert derived.load(client, "index", lambda content=content: content) == content
        assert derived.load(colleague, "index", lambda: b"made anew") == b"a's"
        assert derived.keep(colleague, "index", b"changed") == b"changed"
        assert derived.find_many(a, ["index"]) == [b"changed"]
        assert derived.find_many(b, ["index"]) == [b"b's"]
        assert derived.find_many(everybody, ["index"]) == [b"everybody's"]


def test_sockets_are_made_again_after_any_end(node_process: MakeProcess, data: Path, volumes: VolumeDirectory) -> None:
    socket = volumes.publish("one", "team-a", IMAGES)
    node = node_process(configuration(data, volumes_directory=str(volumes.path)))
    with connected(socket) as client:
        assert client.read("shoal://images/one") == A
        node.kill()
        assert socket.exists(), "a node that was killed leaves it"
        node.start()
        waiting.until(lambda: node.status()["volumes"] == 1, "the node listens again")
        waiting.until(lambda: client.terms() is not None, "the pod's client is back")
        assert client.read("shoal://images/one") == A
        assert client.stats().fallbacks == 0
        assert node.stop() == 0 and not socket.exists(), "one that ends in order takes it along"
        node.start()
        waiting.until(lambda: client.terms() is not None, "and it is back once more")
        assert [info.url for info in client.list("shoal://images/")] == ["shoal://images/one"]


def test_a_socket_that_somebody_took_away_comes_back(node: InProcessNode, volumes: VolumeDirectory) -> None:
    socket = volumes.publish("one", "team-a", IMAGES)
    waiting.until(socket.exists, "the socket is made")
    with Asker(f"unix:{socket}") as asker:
        socket.unlink()
        waiting.until(socket.exists, "it is made again")
        assert asker.resolve("shoal://images/one")[0].size == len(A), "who was connected stays so"
    Asker(f"unix:{socket}").channel.close()


def test_bad_files_are_skipped_and_said_once(
    node: InProcessNode, volumes: VolumeDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "shoal.node")
    bad: dict[str, Any] = {
        "empty": b"", "text": b"hello", "half": b'{"who": "a/b", "name', "foreign": b'{"who": 3}',
        "long": b" " * (1 << 20), "names": b'{"who": "a", "namespace": "a", "datasets": {"a": "(derived)"}}',
    }  # fmt: skip
    for name, content in bad.items():
        (volumes.place(name) / "mount").mkdir(parents=True)
        volumes.write(name, content)
    (volumes.path / "a-file").write_text("no directory")
    volumes.place("linked").symlink_to("/etc")
    (volumes.place("no-access") / "mount").mkdir(parents=True)
    os.mkfifo(_made(volumes.place("fifo")) / "access.json")
    (_made(volumes.place("link")) / "access.json").symlink_to(volumes.place("names") / "access.json")
    (_made(volumes.place("folder")) / "access.json").mkdir()
    good = volumes.publish("good", "team-a", IMAGES)
    waiting.until(good.exists, "the good one has its socket")
    waiting.until(lambda: len(caplog.records) >= len(bad) + 3, "all the others were said")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(bad) + 3, said
    descriptors = len(os.listdir("/proc/self/fd"))
    # Two more looks: nothing is said again, and nothing is read again.
    for _ in range(2):
        good.unlink()
        waiting.until(good.exists, "the node looked")
    assert [record.getMessage() for record in caplog.records] == said
    assert len(os.listdir("/proc/self/fd")) == descriptors
    volumes.publish("text", "team-b", SPEECH)
    with connected(volumes.place("text") / "mount" / "node.sock") as client:
        assert client.read("shoal://speech/one") == B, "what was put right is taken"


def test_what_lies_where_the_socket_should_be_is_not_removed(
    node: InProcessNode, volumes: VolumeDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("file", "folder", "elsewhere", "no-mount"):
        _made(volumes.place(name))
    (volumes.place("file") / "mount" / "node.sock").write_text("mine")
    (volumes.place("folder") / "mount" / "node.sock").mkdir()
    (volumes.place("no-mount") / "mount").rmdir()
    (volumes.place("elsewhere") / "mount").rmdir()
    (volumes.place("elsewhere") / "mount").symlink_to("/tmp")
    identity = b'{"who": "a/b", "namespace": "a", "datasets": {}}'
    for name in ("file", "folder", "elsewhere", "no-mount"):
        volumes.write(name, identity)
    waiting.until(lambda: len(caplog.records) >= 4, "all were said")
    assert (volumes.place("file") / "mount" / "node.sock").read_text() == "mine"
    assert not Path("/tmp/node.sock").exists()
    (volumes.place("file") / "mount" / "node.sock").unlink()
    (volumes.place("no-mount") / "mount").mkdir()
    for name in ("file", "no-mount"):
        waiting.until((volumes.place(name) / "mount" / "node.sock").exists, "it is tried again")
    assert len([record for record in caplog.records if "no socket in mount/" in record.getMessage()]) == 4


def test_the_path_of_a_volume_may_be_long(in_process_node: MakeInProcess, data: Path, tmp_path: Path) -> None:
    directory = VolumeDirectory(tmp_path / ("p" * 100) / ("v" * 100))
    in_process_node(configuration(data, volumes_directory=str(directory.path)))
    socket = directory.publish("one", "team-a", IMAGES)
    waiting.until(socket.exists, "the socket is made, though its path is longer than an address can be")
    mount = os.open(socket.parent, os.O_PATH)
    try:  # a pod sees it at /run/shoal, which is short
        with shoal.connect(f"unix:/proc/self/fd/{mount}/node.sock") as client:
            assert client.read("shoal://images/one") == A
    finally:
        os.close(mount)


def test_volumes_come_before_and_after_their_directory(
    in_process_node: MakeInProcess, data: Path, tmp_path: Path
) -> None:
    with running_node.short_directory() as directory:
        node = in_process_node(configuration(data, volumes_directory=str(directory / "later")))
        socket = VolumeDirectory(directory / "later").publish("one", "team-a", IMAGES)
        with connected(socket) as client:
            assert client.read("shoal://images/one") == A
        os.rename(directory / "later", directory / "gone")
        waiting.until(lambda: node.node.volume_count == 0, "with the directory all volumes go")
        with pytest.raises(ShoalError):
            shoal.connect(f"unix:{directory}/gone/{socket.parent.parent.name}/mount/node.sock").list("shoal://images")


def test_hundreds_of_volumes_cost_one_thread(node: InProcessNode, volumes: VolumeDirectory) -> None:
    before = threading.active_count()
    sockets = [volumes.publish(f"v{number}", "team-a", IMAGES) for number in range(300)]
    waiting.until(lambda: node.node.volume_count == 300, "all have their sockets")
    assert threading.active_count() <= before + 1
    for socket in (sockets[0], sockets[-1]):
        with Asker(f"unix:{socket}") as asker:
            assert asker.resolve("shoal://images/one")[0].size == len(A)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = usage.ru_utime + usage.ru_stime
    sockets[0].unlink()
    waiting.until(sockets[0].exists, "the node looked once more")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    assert usage.ru_utime + usage.ru_stime - cpu_s < 1.0


def test_there_is_an_end_to_volumes(
    node: InProcessNode, volumes: VolumeDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(volumes_module.limits, "VOLUMES_MAX", 2)
    for number in range(3):
        volumes.publish(f"v{number}", "team-a", IMAGES)
    waiting.until(lambda: any("there are 2 volumes already" in record.getMessage() for record in caplog.records))
    assert node.node.volume_count == 2
    listening = next(number for number in range(3) if (volumes.place(f"v{number}") / "mount" / "node.sock").exists())
    volumes.remove(f"v{listening}")
    waiting.until(
        lambda: sum((volumes.place(f"v{number}") / "mount" / "node.sock").exists() for number in range(3)) == 2,
        "the third takes the place that became free",
    )


def test_the_status_counts_volumes(node: InProcessNode, volumes: VolumeDirectory) -> None:
    socket = volumes.publish("one", "team-a", IMAGES)
    waiting.until(socket.exists, "the socket is made")
    with Asker(node.address) as asker:
        waiting.until(lambda: asker.call(stat_verb.KIND, stat_verb.Request()).values["volumes"] == 1, "it is counted")


def test_a_bare_url_names_what_the_volume_has(node: InProcessNode, volumes: VolumeDirectory, data: Path) -> None:
    with connected(volumes.publish("one", "team-a", IMAGES)) as client:
        for url in (f"file://{data}/team-a/images/one", "s3://bucket/key"):
            with pytest.raises(Forbidden, match="read by its URL at the origin: not for team-a/pod, which may read"):
                client.read(url)
        assert client.stats().fallbacks == 0, "what the node forbids is not read around it"


def _made(place: Path) -> Path:
    (place / "mount").mkdir(parents=True)
    return place

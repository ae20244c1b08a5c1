"""Derived objects: built once, kept under their names, built again when they are gone or damaged."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal import derived, errors
from shoal_core.verbs import evict, resolve
from tests.support import waiting
from tests.support.running_node import MakeInProcess, MakeProcess, NodeProcess
from tests.support.watched_door import WatchedDoor

Builds = Callable[[], bytes]


@pytest.fixture(autouse=True)
def empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a process that has built nothing yet."""
    monkeypatch.setattr(derived, "_remembered", derived._remembered.copy())
    monkeypatch.setattr(derived, "_said", [])


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """One that no other test uses: they share a node."""
    return f"test/{request.node.name}"


class Builder:
    """Counts how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return self.content


@pytest.mark.parametrize("size", [0, 1, 64 << 10, 300_000])
def test_built_once(client: shoal.Client, address: str, name: str, size: int) -> None:
    builder = Builder(os.urandom(size))
    assert derived.load(client, name, builder) == builder.content
    assert derived.load(client, name, builder) == builder.content
    with shoal.connect(address) as other:
        assert derived.load(other, name, builder) == builder.content
    assert builder.count == 1
    assert not derived._remembered


def test_content_may_come_in_parts(client: shoal.Client, name: str) -> None:
    def parts() -> Iterator[bytes]:
        for number in range(10):
            yield bytes([number]) * 10_000

    content = derived.load(client, name, parts)
    assert content == b"".join(parts())
    assert derived.find_many(client, [name]) == [content]


def test_many_are_found_and_the_others_built(client: shoal.Client, name: str) -> None:
    names = [f"{name}/{number}" for number in range(5)]
    for number in (1, 3):
        derived.keep(client, names[number], b"kept %d" % number)
    built: list[int] = []

    def build(position: int) -> bytes:
        built.append(position)
        return b"built %d" % position

    expected = [b"built 0", b"kept 1", b"built 2", b"kept 3", b"built 4"]
    assert derived.load_many(client, names, build) == expected
    assert built == [0, 2, 4]
    assert derived.find_many(client, names) == expected


@pytest.mark.parametrize("bound", ["_TOGETHER", "_AT_ONCE_BYTES"])
def test_more_than_is_read_at_once(
    client: shoal.Client, name: str, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(derived, bound, 3)
    contents = [b"x" * (number % 4) for number in range(10)]
    names = [f"{name}/{number}" for number in range(10)]
    for each, content in zip(names, contents, strict=True):
        derived.keep(client, each, content)
    assert derived.find_many(client, names) == contents


def test_an_error_of_the_builder_is_the_callers_and_leaves_nothing(client: shoal.Client, name: str) -> None:
    def fails() -> Iterator[bytes]:
        yield b"half of it"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        derived.load(client, name, fails)
    assert derived.find_many(client, [name]) == [None]


def test_many_builders_at_once_all_succeed(client: shoal.Client, address: str, name: str) -> None:
    content = os.urandom(200_000)

    def load(_: int) -> derived.Buffer:
        with shoal.connect(address) as own:
            return derived.load(own, name, lambda: content)

    with ThreadPoolExecutor(6) as pool:
        assert set(map(bytes, pool.map(load, range(6)))) == {content}
    assert derived.find_many(client, [name]) == [content]


def infos(client: shoal.Client, name: str, content: bytes) -> list[shoal.ObjectInfo]:
    """Head and body of what is kept."""
    etag = hashlib.blake2b(content, digest_size=16).hexdigest()
    return derived.claims(
        client, [resolve.Wanted(f"derived:{name}", 32, "head"), resolve.Wanted(f"derived:{name}", len(content), etag)]
    )


@pytest.mark.parametrize("lost", [0, 1])
def test_without_head_or_body_it_is_built_again(client: shoal.Client, name: str, lost: int) -> None:
    builder = Builder(os.urandom(200_000))
    derived.load(client, name, builder)
    derived.forget(client, [infos(client, name, builder.content)[lost]])
    assert derived.load(client, name, builder) == builder.content
    assert derived.load(client, name, builder) == builder.content
    assert builder.count == 2


@pytest.mark.parametrize("head", [bytes(32), b"shoal-1\0" + b"\xff" * 24, b"shoal-1\0" + bytes(24)])
def test_a_damaged_head_is_replaced(client: shoal.Client, address: str, name: str, head: bytes) -> None:
    builder = Builder(os.urandom(1000))
    derived.put(client, infos(client, name, builder.content)[0], head)
    assert derived.load(client, name, builder) == builder.content
    with shoal.connect(address) as other:
        for connected in (client, other):
            assert derived.load(connected, name, builder) == builder.content
    assert builder.count == 1


def test_a_body_that_is_not_what_its_head_says_is_replaced(client: shoal.Client, name: str) -> None:
    builder = Builder(os.urandom(100_000))
    derived.load(client, name, builder)
    body = infos(client, name, builder.content)[1]
    derived.forget(client, [body])
    derived.put(client, body, os.urandom(100_000))
    assert derived.load(client, name, builder) == builder.content
    assert derived.load(client, name, builder) == builder.content
    assert builder.count == 2


def test_other_content_takes_the_name(client: shoal.Client, address: str, name: str) -> None:
    derived.keep(client, name, b"first")
    derived.keep(client, name, b"another")
    with shoal.connect(address) as other:
        assert derived.find_many(other, [name]) == [b"another"]


def test_a_name_that_no_url_can_hold_is_refused(client: shoal.Client) -> None:
    with pytest.raises(errors.BadRequest, match="8192 bytes"):
        derived.load(client, "x" * 9000, lambda: b"")


# Without a node, or without room in it, or without an answer in time.


def test_a_node_that_does_not_answer_in_time_makes_it_built(
    in_process_node: MakeInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = WatchedDoor(in_process_node({}).memory)
    builder = Builder(os.urandom(1000))
    with shoal.connect(door) as client:
        assert client.terms() is not None
        monkeypatch.setattr(derived.limits, "DEADLINE_S_DEFAULT", 0.2)
        held = door.hold(resolve)
        assert derived.load(client, "late", builder) == builder.content
        held.let_go()
    assert builder.count == 1


def test_damage_that_cannot_be_dropped_makes_it_built(
    in_process_node: MakeInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = WatchedDoor(in_process_node({}).memory)
    builder = Builder(os.urandom(1000))
    with shoal.connect(door) as client:
        derived.load(client, "damaged", builder)
        body = infos(client, "damaged", builder.content)[1]
        derived.forget(client, [body])
        derived.put(client, body, os.urandom(1000))
        monkeypatch.setattr(derived.limits, "DEADLINE_S_DEFAULT", 0.2)
        held = door.hold(evict)
        assert derived.load(client, "damaged", builder) == builder.content
        held.let_go()
    assert builder.count == 2


def test_without_a_node_the_process_remembers(node_process: MakeProcess, caplog: pytest.LogCaptureFixture) -> None:
    node = node_process()
    with shoal.connect(node.address) as client:
        assert client.terms() is not None
        node.kill()
        builders = [Builder(b"first"), Builder(b"second")]
        with caplog.at_level(logging.WARNING, "shoal"):
            for _ in range(2):
                for builder in builders:
                    assert derived.load(client, builder.content.decode(), builder) == builder.content
        assert [builder.count for builder in builders] == [1, 1]
        assert sum("does not keep" in record.message for record in caplog.records) == 1


def test_a_node_that_was_started_again_meanwhile_gets_it_all_the_same(node_process: MakeProcess) -> None:
    """It remembers no fingerprint that was claimed before."""
    node = node_process()
    content = os.urandom(200_000)
    with shoal.connect(node.address) as client:
        head, body = infos(client, "again", content)
        node.kill()
        node.start()
        assert derived.put(client, body, content)
        assert client.read(body) == content
        assert head.size == 32


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "_REMEMBERED_BYTES", 100)
    for number in range(5):
        derived.remember(f"bounded {number}", bytes(40), errors.NodeGone("test"))
    assert [derived.remembered(f"bounded {number}") for number in range(5)] == [None] * 3 + [bytes(40)] * 2


def test_many_threads_remember_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "_REMEMBERED_BYTES", 100_000)

    def remember(thread: int) -> None:
        for number in range(200):
            derived.remember(f"{thread} {number}", bytes(1000), errors.NodeGone("test"))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(remember, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert sum(len(kept) for kept in derived._remembered.values()) == 100_000


def test_a_forked_child_waits_for_no_thread_of_its_parent() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with derived._lock:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(5)
        derived.remember("in the child", b"abc", errors.NodeGone("test"))
        os._exit(0 if derived.remembered("in the child") == b"abc" else 1)
    status = os.waitpid(child, 0)[1]
    leave.set()
    thread.join()
    assert status == 0


def test_kill_9_and_a_restart_keep_it(node_process: MakeProcess, tmp_path: Path) -> None:
    node: NodeProcess = node_process(
        {"nvme": [{"directory": str(tmp_path / "nvme"), "budget_bytes": "64MiB"}], "state_directory": str(tmp_path)}
    )
    builder = Builder(os.urandom(1_000_000))
    with shoal.connect(node.address) as client:
        derived.load(client, "kept", builder)
    waiting.until(lambda: node.status()["disk_queue"] == 0 and node.status()["tiers"]["disk"]["blocks"] == 17)
    node.kill()
    node.start()
    with shoal.connect(node.address) as client:
        assert derived.load(client, "kept", builder) == builder.content
    assert builder.count == 1
    status = node.status()
    assert status["origin_requests"] == 0
    assert "derived" not in status["fills"]

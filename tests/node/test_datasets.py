"""Data sets of a running node: removed, declared anew, and numbers that go from one to another."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import shoal
from shoal_core import config, index
from shoal_core.errors import BadRequest, ConfigError, NotFound
from shoal_node import datasets
from tests.support import waiting
from tests.support.http_origin import HttpOrigin
from tests.support.running_node import InProcessNode, MakeInProcess, MakeProcess

BLOCK = 64 << 10
DATA = bytes(range(256)) * (BLOCK // 128)


@pytest.fixture
def node(in_process_node: MakeInProcess, http_origin: HttpOrigin) -> InProcessNode:
    for name in ("a", "b.tmp", "sub/c"):
        http_origin.put(f"/set/{name}", DATA)
    return in_process_node()


def put(node: InProcessNode, origin: HttpOrigin, name: str = "set", **settings: object) -> bool:
    return node.node.datasets.put(name, config.Dataset(origin.url("/set"), **settings))  # type: ignore[arg-type]


def read(node: InProcessNode, url: str) -> bytes:
    with shoal.connect(node.address) as client:
        return client.read(url)


def number_of(node: InProcessNode, name: str) -> int:
    return next(number for number, space in enumerate(node.node.state.spaces) if space.name == name)


def test_removed_and_declared_again(node: InProcessNode, http_origin: HttpOrigin) -> None:
    assert put(node, http_origin) is True and put(node, http_origin) is False
    assert read(node, "shoal://set/a") == DATA
    number = number_of(node, "set")
    assert node.node.datasets.remove("set") is True and node.node.datasets.remove("set") is False
    waiting.until(lambda: not node.node.state.dram.slabs.space_used_bytes(number), "its last reader is gone")
    with pytest.raises(NotFound, match="no dataset named 'set'"):
        read(node, "shoal://set/a")
    assert put(node, http_origin) is True and number_of(node, "set") == number
    assert read(node, "shoal://set/a") == DATA


def test_what_is_leased_goes_with_its_lease(node: InProcessNode, http_origin: HttpOrigin) -> None:
    put(node, http_origin)
    with shoal.connect(node.address) as client:
        view = client.view("shoal://set/a", 0, BLOCK)
        node.node.datasets.remove("set")
        assert view.memory.tobytes() == DATA[:BLOCK], "a reader keeps what it holds"
        view.close()
        waiting.until(
            lambda: not node.node.state.dram.slabs.space_used_bytes(number_of(node, "set")), "and then it is gone"
        )


def test_what_was_on_its_way_is_swept_up(node: InProcessNode, http_origin: HttpOrigin) -> None:
    put(node, http_origin)
    read(node, "shoal://set/a")
    number = number_of(node, "set")
    node.node.datasets.remove("set")
    with node.node.step() as state:  # as a fill that ends now
        slot = state.reserve(number, 100, 0)
        assert slot is not None
        state.unhold(state.publish(bytes(16), number, 100, slot, bytes(8), 0))
    assert state.dram.slabs.space_used_bytes(number)
    node.node.datasets.sweep()
    waiting.until(lambda: not state.dram.slabs.space_used_bytes(number), "also what its last reader still held")
    assert state.index.find(bytes(16)) == index.NONE


def test_a_number_is_used_again(node: InProcessNode, http_origin: HttpOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    put(node, http_origin, "one")
    read(node, "shoal://one/a")
    number = number_of(node, "one")
    node.node.datasets.remove("one")
    put(node, http_origin, "two")
    assert number_of(node, "two") != number, "not so soon: something may be on its way"
    waiting.until(lambda: not node.node.state.dram.slabs.space_used_bytes(number), "its last reader is gone")
    monkeypatch.setattr(datasets, "_REUSE_S", 0.0)
    put(node, http_origin, "three", eviction="pin", ttl_s=1000)
    assert number_of(node, "three") == number
    assert read(node, "shoal://three/a") == read(node, "shoal://two/a") == DATA
    assert node.node.datasets.names == ["three", "two"]
    put(node, http_origin, "one")
    assert read(node, "shoal://one/a") == DATA


def test_patterns(node: InProcessNode, http_origin: HttpOrigin) -> None:
    with shoal.connect(node.address) as client:
        put(node, http_origin)
        assert client.read("shoal://set/b.tmp") == DATA
        put(node, http_origin, exclude=("*.tmp",))
    with shoal.connect(node.address) as client:
        with pytest.raises(NotFound, match=r"the data set excludes '\*\.tmp'"):
            client.read("shoal://set/b.tmp")
        assert client.read("shoal://set/a") == client.read("shoal://set/sub/c") == DATA
        put(node, http_origin, include=("sub/**",))
    with shoal.connect(node.address) as client:
        with pytest.raises(NotFound, match=r"includes only 'sub/\*\*'"):
            client.read("shoal://set/a")
        with pytest.raises(NotFound, match="leads out"):
            client.read("shoal://set/sub/../../other")
        assert client.read("shoal://set/sub/c") == DATA


def test_how_long_a_resolution_is_trusted(node: InProcessNode, http_origin: HttpOrigin) -> None:
    put(node, http_origin, refresh_s=0.01)
    read(node, "shoal://set/a")
    heads = http_origin.count("/set/a", "HEAD")
    waiting.until(lambda: read(node, "shoal://set/a") and http_origin.count("/set/a", "HEAD") > heads, "asked again")


def test_what_cannot_be_declared(node: InProcessNode, http_origin: HttpOrigin) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        put(node, http_origin, endpoint="ftp://x")
    with pytest.raises(ConfigError, match=r"include\[0\]"):
        put(node, http_origin, include=("/x",))
    node.node.datasets.are_followed = True
    with shoal.connect(node.address) as client, pytest.raises(BadRequest, match="Kubernetes"):
        client.declare_dataset("x", http_origin.url("/x"))


def test_a_node_that_is_told_to_end_writes_what_it_has(
    node_process: MakeProcess, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    url = http_origin.put("/large", bytes(64 * BLOCK))
    disk = {"directory": str(tmp_path / "disk"), "budget_bytes": "32MiB"}
    process = node_process({"nvme": [disk]})
    with shoal.connect(process.address) as client:
        client.read(url)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    process.start()
    assert process.status()["tiers"]["disk"]["blocks"] == 64


def test_status_says_which_version_and_what_each_data_set_does(node: InProcessNode, http_origin: HttpOrigin) -> None:
    put(node, http_origin)
    for _ in range(3):
        read(node, "shoal://set/a")
    said = node.node.status()
    assert said["version"] and said["preloads"] == {} and "bypass" in said["fallbacks"]
    told = said["datasets"]["set"]
    assert told["misses"] == 2 and told["hits"] == 4 and told["cached_bytes"] >= len(DATA)
    assert told["objects"] is told["manifest"] is told["error"] is None

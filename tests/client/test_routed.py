"""A client of several nodes: which it asks, what it does when one fails, and that it follows the view."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.planning import Planner
from shoal_core import errors, index, keys
from tests.support import waiting
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.nodes import GIB, Nodes, in_process_node, nodes
from tests.support.running_node import MakeProcess, NodeProcess

__all__ = ["in_process_node", "nodes"]

BLOCK = 64 << 10
SETTINGS = {"fill": {"range_bytes_max": BLOCK}}


def gets(origin: HttpOrigin) -> int:
    return sum(seen.method == "GET" for seen in origin.seen)


def replicated(nodes: Nodes, info: shoal.ObjectInfo, blocks: int, count: int) -> bool:
    found = 0
    for node in nodes.running.values():
        with node.node.step() as state:
            found += sum(
                state.index.find(keys.block_key(info.fingerprint, block)) != index.NONE for block in range(blocks)
            )
    return found >= blocks * count


Processes = Callable[..., list[NodeProcess]]


@pytest.fixture
def processes(node_process: MakeProcess, tmp_path: Path) -> Processes:
    """processes(3) -> nodes as processes of their own, with two replicas, one view."""

    def make(count: int, settings: Mapping[str, Any] | None = None) -> list[NodeProcess]:
        file = tmp_path / "view.json"
        made = [
            node_process(
                {
                    "node_name": f"node-{number}", "fill": {"range_bytes_max": BLOCK},
                    "cluster": {"view": str(file), "poll_s": 0.1, **(settings or {})},
                }
            )
            for number in range(count)
        ]  # fmt: skip
        rows = [
            {"id": f"node-{number}", "addresses": [node.tcp_address], "capacity_bytes": GIB}
            for number, node in enumerate(made)
        ]
        new = file.with_suffix(".new")
        new.write_text(json.dumps({"epoch": 1, "replica_count": 2, "nodes": rows}))
        os.replace(new, file)
        waiting.until(lambda: all(node.status()["view_epoch"] == 1 for node in made), "all hold the view")
        return made

    return make


def settled(processes: list[NodeProcess], blocks: int) -> bool:
    """Whether the cluster holds two of each of so many blocks."""
    return sum(node.status()["tiers"]["dram"]["blocks"] for node in processes) >= 2 * blocks


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("where", ["at home", "elsewhere"])
def test_a_node_that_fails_costs_its_readers_a_moment(
    processes: Processes, http_origin: HttpOrigin, how: str, where: str
) -> None:
    made = processes(3)
    data = os.urandom(40 * BLOCK)
    url = http_origin.put("/data", data)
    with shoal.connect(made[1].tcp_address) as warming:
        assert warming.read(url) == data
    waiting.until(lambda: settled(made, 40), "two of each")
    before = gets(http_origin)
    address = made[0].address if where == "at home" else made[0].tcp_address
    with shoal.connect(address, deadline_s=30) as client:
        assert client.read(url) == data
        made[0].kill() if how == "killed" else made[0].signal(signal.SIGSTOP)
        try:
            longest = 0.0
            for _ in range(20):
                started = time.monotonic()
                assert client.read_many([(url, block * BLOCK + 5, 1000) for block in range(40)]) == [
                    data[block * BLOCK + 5 : block * BLOCK + 1005] for block in range(40)
                ]
                longest = max(longest, time.monotonic() - started)
            assert longest < 10, "nothing hangs"
            assert client.stats().fallbacks == 0
        finally:
            if how == "stopped":
                made[0].signal(signal.SIGCONT)
    assert gets(http_origin) == before


def test_a_home_that_is_back_is_used_again(processes: Processes, http_origin: HttpOrigin) -> None:
    made = processes(2)
    data = os.urandom(4 * BLOCK)
    url = http_origin.put("/data", data)
    with shoal.connect(made[0].address, deadline_s=30) as client:
        assert client.read(url) == data
        made[0].kill()
        assert client.read(url) == data
        elsewhere = client.stats().hits["tcp"]
        made[0].start()

        def at_home() -> bool:
            hits = client.stats().hits["tcp"]
            assert client.read(url) == data
            return client.stats().hits["tcp"] == hits

        waiting.until(at_home, "it reads at home again", 30)
        assert client._routed.router.without == "", "and nobody takes it for lost any more"
    assert elsewhere or client.stats().hits["origin"]


def test_a_reader_without_a_way_to_the_origin_waits_for_a_node(
    node_process: MakeProcess, http_origin: HttpOrigin
) -> None:
    """As in a pod whose cache pod is replaced: the only node, and nothing here knows what the URL stands for."""
    data, other = os.urandom(4 * BLOCK), os.urandom(BLOCK)
    http_origin.put("/train/data", data)
    http_origin.put("/train/other", other)
    node = node_process({"datasets": {"train": {"url": http_origin.url("/train")}}, "fill": {"range_bytes_max": BLOCK}})
    with shoal.connect(node.address, deadline_s=60) as client:
        assert client.read("shoal://train/data") == data
        node.kill()
        http_origin.fail("/train/data", Fault(status=403))
        waiting.until(lambda: client.session.attachment is None, "the client knows that it is gone")

        def back() -> None:
            http_origin.heal("/train/data")
            node.start()

        timer = threading.Timer(1.0, back)
        timer.start()
        assert client.read("shoal://train/data", 5, 3 * BLOCK) == data[5 : 5 + 3 * BLOCK]
        assert client.read("shoal://train/other") == other, "an object that it had not heard of"
        timer.join()


def test_a_node_that_is_back_has_the_last_word(
    node_process: MakeProcess, http_origin: HttpOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    """Two blocks of one read: what is said of the object ends the waiting for it."""
    data = os.urandom(4 * BLOCK)
    http_origin.put("/train/data", data)
    node = node_process({"datasets": {"train": {"url": http_origin.url("/train")}}, "fill": {"range_bytes_max": BLOCK}})
    with shoal.connect(node.address, deadline_s=60) as client:
        info = client.info("shoal://train/data")
        node.kill()
        http_origin.fail("/train/data", Fault(status=403))
        waiting.until(lambda: client.session.attachment is None, "the client knows that it is gone")

        def back() -> None:
            http_origin.delete("/train/data")
            node.start()

        timer = threading.Timer(0.5, back)
        timer.start()
        started = time.monotonic()
        with pytest.raises((errors.NotFound, errors.ObjectChanged)):
            client.read(info)
        assert time.monotonic() - started < 40, "and not its deadline"
        timer.join()
    assert "trying the nodes and the origin until the deadline" in caplog.text


def test_a_client_that_is_closed_waits_for_nobody(node_process: MakeProcess, http_origin: HttpOrigin) -> None:
    http_origin.put("/train/data", os.urandom(4 * BLOCK))
    node = node_process({"datasets": {"train": {"url": http_origin.url("/train")}}, "fill": {"range_bytes_max": BLOCK}})
    client = shoal.connect(node.address, deadline_s=60)
    info = client.info("shoal://train/data")
    node.kill()
    http_origin.fail("/train/data", Fault(status=403))
    timer = threading.Timer(0.5, client.close)
    timer.start()
    started = time.monotonic()
    with pytest.raises(errors.ShoalError):
        client.read(info)
    assert time.monotonic() - started < 30
    timer.join()


def test_a_reader_waits_until_its_deadline_and_not_for_what_is_not_there(
    node_process: MakeProcess, http_origin: HttpOrigin
) -> None:
    data = os.urandom(4 * BLOCK)
    http_origin.put("/train/data", data)
    node = node_process({"datasets": {"train": {"url": http_origin.url("/train")}}, "fill": {"range_bytes_max": BLOCK}})
    with shoal.connect(node.address, datasets={"train": http_origin.url("/train")}) as client:
        info = client.info("shoal://train/data")
        node.kill()
        with pytest.raises(errors.NotFound):
            client.read("shoal://train/none")
        http_origin.fail("/train/data", Fault(status=403))
        started = time.monotonic()
        with pytest.raises(errors.Forbidden):
            client.read(info, deadline_s=1.0)
        assert 0.5 < time.monotonic() - started < 10
        http_origin.heal("/train/data")
        with shoal.connect(node.address) as other:  # which never had a node
            started = time.monotonic()
            with pytest.raises(errors.NodeGone):
                other.read("shoal://train/data")
            assert time.monotonic() - started < 5
        http_origin.delete("/train/data")
        with pytest.raises((errors.NotFound, errors.ObjectChanged)):
            client.read(info)


def test_the_nearest_owner_is_asked(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, replica_count=3, zones=3, overrides=SETTINGS)
    data = os.urandom(30 * BLOCK)
    url = http_origin.put("/data", data)
    with shoal.connect(nodes[1].tcp_address, zone="zone-2") as client:
        info = client.info(url)
        assert client.read(info) == data
        waiting.until(lambda: replicated(nodes, info, 30, 3), "three of each")
        before = {name: node.node.counters.reads["tcp"][0] for name, node in nodes.running.items()}
        assert client.read(info) == data
        after = {name: node.node.counters.reads["tcp"][0] - before[name] for name, node in nodes.running.items()}
    assert after == {"node-1": 0, "node-2": 30, "node-3": 0}
    assert gets(http_origin) == 30


def test_a_client_follows_the_view(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(2, overrides=SETTINGS)
    url = http_origin.put("/data", os.urandom(20 * BLOCK))
    with shoal.connect(nodes[1].tcp_address) as client:
        client.read(url)
        assert client._routed.epoch == 1
        nodes.add(3, overrides=SETTINGS)
        nodes.publish()

        def follows() -> bool:
            client.read(url)
            return client._routed.epoch == nodes.epoch

        waiting.until(follows, "a reply told it")
        assert client.stats().fallbacks == 0


def test_bad_memory_on_one_node_costs_another_read(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(2, replica_count=2, overrides=SETTINGS)
    data = os.urandom(24 * BLOCK)  # so many that each node is the first owner of some
    url = http_origin.put("/data", data)
    with shoal.connect(nodes[1].tcp_address) as client:
        info = client.info(url)
        assert client.read(info) == data
        waiting.until(lambda: replicated(nodes, info, 24, 2), "two of each")
        spoilt = nodes[1].node
        for block in range(24):
            with spoilt.step() as state:
                entry = state.lookup(keys.block_key(info.fingerprint, block))
                spoilt.entry_memory(entry)[100] ^= 0x40

        def found_out() -> int:
            assert client.read(info) == data
            return client.stats().corrupt_pages

        waiting.until(found_out, "the bad copies were read")
        assert client.stats().fallbacks == 0
        waiting.until(lambda: spoilt.counters.corrupt_pages["dram"] > 0, "the node found it out itself")
    assert gets(http_origin) <= 48


def test_it_goes_to_another_process_as_it_is(nodes: Nodes) -> None:
    nodes.start(2)
    with (
        shoal.connect(nodes[1].tcp_address, zone="z", rack="r") as client,
        pickle.loads(pickle.dumps(client)) as other,
    ):
        assert other._routed.router.here == client._routed.router.here
        assert other.terms().node == "node-1"


def test_a_plan_reaches_the_nodes_that_reads_go_to(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, overrides=SETTINGS)
    data = os.urandom(60 * BLOCK)
    url = http_origin.put("/data", data)
    with shoal.connect(nodes[1].tcp_address) as client:
        info = client.info(url)
        planner = Planner(client, os.urandom(16))
        left = [(info, block, 1, block) for block in range(60)]

        def told() -> bool:
            accepted = planner.send(0, left, 60)
            assert planner.answered
            del left[:accepted]
            return not left

        waiting.until(told, "all of the plan is dealt with")
        waiting.until(lambda: replicated(nodes, info, 60, 1), "it was filled ahead")
        before = gets(http_origin)
        assert client.read(info) == data
        assert client.stats().hits["tcp"] == 60, "every block was in memory of the node that was asked"
        planner.close()
    assert gets(http_origin) == before == 60
    assert nodes.total("peer_bytes") == 0


def test_a_node_that_is_told_to_end_hands_over_first_if_it_was_told_so(
    processes: Processes, http_origin: HttpOrigin
) -> None:
    made = processes(3, {"handover_on_exit_s": 30.0})
    data = os.urandom(40 * BLOCK)
    url = http_origin.put("/data", data)
    with shoal.connect(made[1].tcp_address) as client:
        assert client.read(url) == data
        waiting.until(lambda: settled(made, 40), "two of each")
        made[0].stop()
        assert settled(made[1:], 40), "what it held is held by the others"
        assert client.read(url) == data
        assert client.stats().fallbacks == 0
    assert gets(http_origin) == 40

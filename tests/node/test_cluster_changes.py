"""A cluster that changes: nodes that join take their share, those that leave hand over, those that die are repaired."""

from __future__ import annotations

import os
import time

import shoal
from shoal_core import index, keys
from shoal_core.verbs import drain
from tests.support import waiting
from tests.support.http_origin import HttpOrigin
from tests.support.nodes import Nodes, in_process_node, nodes

__all__ = ["in_process_node", "nodes"]

BLOCK = 64 << 10
COUNT = 200
SETTINGS = {"fill": {"range_bytes_max": BLOCK}}


def filled(nodes: Nodes, origin: HttpOrigin, count: int = COUNT) -> shoal.ObjectInfo:
    """Some blocks, read through one client elsewhere, so that they lie at their owners only."""
    url = origin.put("/data", os.urandom(count * BLOCK))
    with shoal.connect(nodes[1].tcp_address) as client:
        client.read(url)
        return client.info(url)


def held(nodes: Nodes, info: shoal.ObjectInfo) -> dict[str, set[int]]:
    """By node the blocks that it holds as its own."""
    found: dict[str, set[int]] = {}
    for name, node in nodes.running.items():
        peers = node.node.peers
        assert peers is not None
        with node.node.step() as state:
            entries = {
                block: state.index.find(keys.block_key(info.fingerprint, block))
                for block in range(-(-info.size // info.block_size_bytes))
            }
            found[name] = {block for block, entry in entries.items() if entry != index.NONE and entry not in peers.near}
    return found


def copies(nodes: Nodes, info: shoal.ObjectInfo, but: tuple[str, ...] = ()) -> list[int]:
    """By block on how many nodes it is held."""
    count = -(-info.size // info.block_size_bytes)
    blocks = [held for name, held in held(nodes, info).items() if name not in but]
    return [sum(block in each for each in blocks) for block in range(count)]


def gets(origin: HttpOrigin) -> int:
    return sum(seen.method == "GET" for seen in origin.seen)


def test_a_node_that_joins_takes_its_share_and_no_more(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(4, overrides=SETTINGS)
    info = filled(nodes, http_origin)
    before = nodes.total("pulled_bytes")
    nodes.add(5, overrides=SETTINGS)
    nodes.publish()
    line = nodes[5].node.peers
    assert line is not None
    owners = [line.cluster.owners(keys.block_key(info.fingerprint, block), None) for block in range(COUNT)]
    expected = sum("node-5" in each for each in owners)
    assert 0.1 * COUNT < expected < 0.3 * COUNT
    waiting.until(lambda: len(held(nodes, info)["node-5"]) == expected, "it has what it owns")
    assert nodes.total("pulled_bytes") - before == expected * BLOCK, "nothing else moved"
    assert gets(http_origin) == COUNT, "and the origin was not asked"


def test_a_node_that_is_drained_hands_everything_over_and_then_refuses(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, replica_count=2, overrides=SETTINGS)
    info = filled(nodes, http_origin)
    waiting.until(lambda: copies(nodes, info) == [2] * COUNT, "two of each")
    leaving = nodes[2].node
    leaving.drain(drain.START)
    waiting.until(lambda: leaving.refusing, "it is done")
    progress = leaving.drain_progress()["handover"]
    assert progress["done"] and not progress["left_blocks"] and not progress["refused"], progress
    assert copies(nodes, info, but=("node-2",)) == [2] * COUNT
    with shoal.connect(nodes[1].tcp_address) as client:
        client.read(info)
        assert client.stats().fallbacks == 0
    assert gets(http_origin) == COUNT


def test_a_drain_can_be_taken_back(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, replica_count=2, overrides=SETTINGS)
    filled(nodes, http_origin, 20)
    leaving = nodes[2].node
    leaving.drain(drain.START)
    assert leaving.ready() == (False, "draining")
    assert not leaving.drain(drain.CANCEL)["draining"]
    assert leaving.ready()[0]
    with shoal.connect(nodes[2].tcp_address) as client:
        assert len(client.read(http_origin.put("/other", b"x" * 1000))) == 1000


def test_what_a_dead_node_held_is_held_by_others_again(nodes: Nodes, http_origin: HttpOrigin) -> None:
    overrides = {**SETTINGS, "cluster": {"repair_after_s": 2.0}}
    nodes.start(4, replica_count=2, overrides=overrides)
    info = filled(nodes, http_origin, 100)
    waiting.until(lambda: copies(nodes, info) == [2] * 100, "two of each")
    nodes.stop(3)
    waiting.until(lambda: copies(nodes, info) == [2] * 100, "two of each again", 40)
    assert gets(http_origin) == 100, "from the nodes that held them, not from the origin"


def test_a_later_view_spreads_from_node_to_node(nodes: Nodes) -> None:
    nodes.start(3)
    outdated = nodes[2].node.peers
    assert outdated is not None and outdated._follower is not None
    outdated._follower.close()  # it sees the file no more
    known = {name: node for name, node in nodes.running.items() if name != "node-2"}
    nodes.rows["node-3"]["status"] = "draining"
    nodes.publish_for(known)
    waiting.until(lambda: nodes[2].node.epoch == nodes.epoch, "it heard of it from another")


def test_a_hot_block_gets_more_holders_and_readers_are_told(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(4, overrides=SETTINGS)
    url = http_origin.put("/hot", os.urandom(1000))
    with shoal.connect(nodes[1].tcp_address) as client:
        info = client.info(url)
        key = keys.block_key(info.fingerprint, 0)
        until = time.monotonic() + 30

        def read_on() -> bool:
            for _ in range(100):
                client.read(info)
            told = client._routed.router._hot.get(key)
            return told is not None and told[0] > 1

        while not read_on():
            assert time.monotonic() < until, "nobody was told of more holders"
        with_it = sum(node.node.state.lookup(key) != index.NONE for node in nodes.running.values())
        assert with_it > 1
        assert client.stats().fallbacks == 0
    assert gets(http_origin) == 1


def test_a_node_that_joins_learns_the_data_sets(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(2, overrides=SETTINGS)
    http_origin.put("/images/a", b"x" * 1000)
    with shoal.connect(nodes[1].tcp_address) as client:
        client.declare_dataset("images", http_origin.url("/images"), replicas=2)
    nodes.add(3, overrides=SETTINGS)
    nodes.publish()
    joined = nodes[3].node
    waiting.until(lambda: any(space.name == "images" for space in joined.state.spaces), "it knows")
    assert next(space.replicas for space in joined.state.spaces if space.name == "images") == 2
    with shoal.connect(nodes[3].address) as client:
        assert client.read("shoal://images/a") == b"x" * 1000

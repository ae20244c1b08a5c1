"""Several nodes as one cache: the origin is asked once, near copies stay within their share, replicas are made."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import shoal
from shoal_core import keys
from tests.support import waiting
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.nodes import Nodes, in_process_node, nodes

__all__ = ["in_process_node", "nodes"]

BLOCK = 64 << 10


def holders(nodes: Nodes, info: shoal.ObjectInfo, block: int) -> set[str]:
    """Nodes that hold a block as their own."""
    key = keys.block_key(info.fingerprint, block)
    found: set[str] = set()
    for name, node in nodes.running.items():
        with node.node.step() as state:
            entry = state.index.find(key)
            assert node.node.peers is not None
            if entry != 0xFFFFFFFF and entry not in node.node.peers.near:
                found.add(name)
    return found


def gets(origin: HttpOrigin, path: str) -> int:
    return sum(seen.method == "GET" and seen.path == path for seen in origin.seen)


def test_each_block_is_fetched_once_for_all_nodes(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, overrides={"fill": {"range_bytes_max": BLOCK}})
    data = os.urandom(20 * BLOCK + 5)
    url = http_origin.put("/data", data)
    for number in (1, 2, 3):
        with shoal.connect(nodes[number].address) as client:
            assert client.read(url) == data
    assert gets(http_origin, "/data") == 21
    assert nodes.total("peer_bytes") > 0


def test_a_thousand_readers_at_once_cost_the_origin_one_copy(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, overrides={"fill": {"range_bytes_max": BLOCK}})
    data = os.urandom(8 * BLOCK)
    url = http_origin.put("/data", data)
    gate = threading.Event()
    http_origin.fail("/data", Fault(gate=gate))
    clients = [shoal.connect(node.address) for node in nodes.running.values() for _ in range(4)]
    with ThreadPoolExecutor(48) as pool:
        reads = [pool.submit(client.read, url) for client in clients * 4]
        http_origin.await_requests("/data")
        gate.set()
        assert all(read.result(30) == data for read in reads)
    assert gets(http_origin, "/data") == 8
    for client in clients:
        client.close()


def test_a_client_elsewhere_asks_the_owners(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, overrides={"fill": {"range_bytes_max": BLOCK}})
    data = os.urandom(30 * BLOCK)
    url = http_origin.put("/data", data)
    with shoal.connect(nodes[1].tcp_address) as client:
        assert client.read(url) == data
        assert client.read_many([(url, block * BLOCK, 100) for block in range(30)]) == [
            data[block * BLOCK : block * BLOCK + 100] for block in range(30)
        ]
        stats = client.stats()
    assert stats.hits["tcp"] == 30 and stats.hits["origin"] == 30 and stats.fallbacks == 0
    assert gets(http_origin, "/data") == 30
    assert nodes.total("peer_bytes") == 0, "who asks owners needs no node between"


def test_replicas_are_made_and_one_loss_costs_nothing(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, replica_count=2, overrides={"fill": {"range_bytes_max": BLOCK}})
    data = os.urandom(20 * BLOCK)
    url = http_origin.put("/data", data)
    with shoal.connect(nodes[1].tcp_address) as client:
        assert client.read(url) == data
        info = client.info(url)
        waiting.until(lambda: all(len(holders(nodes, info, block)) == 2 for block in range(20)), "two of each")
        before = gets(http_origin, "/data")
        nodes.stop(3)
        assert client.read(url) == data
        assert client.stats().fallbacks == 0
    assert gets(http_origin, "/data") == before == 20


def why(nodes: Nodes, number: int, info: shoal.ObjectInfo) -> str | None:
    """What node `number` remembers of block 0."""
    found = nodes[number].node.endings.why(keys.block_key(info.fingerprint, 0))
    return found[0] if found is not None else None


def test_a_node_remembers_why_a_block_did_not_come(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(1, overrides={"fill": {"timeout_s": 0.3}})
    urls = {name: http_origin.put(f"/{name}", os.urandom(BLOCK)) for name in ("slow", "refused")}
    gate = threading.Event()
    http_origin.fail("/slow", Fault(gate=gate))
    http_origin.fail("/refused", Fault(status=403))
    with shoal.connect(nodes[1].address) as client:
        infos = {name: client.info(url) for name, url in urls.items()}
        results = client.read_many([infos["slow"], infos["refused"]], return_errors=True)
        gate.set()
    assert all(isinstance(result, Exception) for result in results)
    assert why(nodes, 1, infos["slow"]) == "late" and why(nodes, 1, infos["refused"]) == "failed"


def test_a_node_remembers_that_a_quota_pushed_a_block_out(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(1, overrides={"fill": {"range_bytes_max": BLOCK}})
    for number in range(6):
        http_origin.put(f"/set/{number}", os.urandom(BLOCK))
    with shoal.connect(nodes[1].tcp_address) as client:
        client.declare_dataset("set", http_origin.url("/set"), quota_bytes=3 * BLOCK)
        infos = [client.info(f"shoal://set/{number}") for number in range(6)]
        for info in infos:
            client.read(info)
    assert [why(nodes, 1, info) for info in infos].count("quota") == 3

"""`shoal warm` over a cluster: every owner of every block, the origin asked once, each copy looked at where it lies."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import shoal as shoal_package
from shoal.cli import main
from shoal_core import index
from tests.client.cluster_commands import Shoal, look, shoal
from tests.support import waiting
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.nodes import Nodes, in_process_node, nodes
from tests.support.objects import MakeObject

__all__ = ["in_process_node", "nodes", "shoal"]

BLOCK = 64 << 10
ONE_GET_A_BLOCK = {"fill": {"range_bytes_max": BLOCK}}


def test_warm_fills_the_owners_once_from_the_origin(shoal: Shoal, nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, replica_count=2, overrides=ONE_GET_A_BLOCK)
    urls = [http_origin.put(f"/{name}", os.urandom(12 * BLOCK + 1)) for name in "ab"]
    words = ("warm", *urls, "--address", nodes[1].address)
    code, printed, errors = shoal(*words)
    assert (code, errors) == (0, "")
    assert printed.startswith("2 objects, 1.50 MiB: all in the cache, verified at 2 owners each; ")
    assert http_origin.count("/a") == http_origin.count("/b") == 13
    for url in urls:
        for block in look(nodes, url):
            assert set(block.holders) == set(block.owners), "and no near copies"
    code, printed, _ = shoal(*words)
    assert printed == "2 objects, 1.50 MiB: all in the cache, verified at 2 owners each already\n"
    assert http_origin.count("/a") == http_origin.count("/b") == 13


def test_warm_goes_on_where_it_was_and_mends_what_is_bad(shoal: Shoal, nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, replica_count=2, overrides=ONE_GET_A_BLOCK)
    url = http_origin.put("/data", os.urandom(10 * BLOCK))
    with shoal_package.connect(nodes[1].tcp_address) as client:
        client.read(url, 0, 4 * BLOCK)
        info = client.info(url)
    assert http_origin.count("/data") == 4
    assert shoal("warm", url, "--address", nodes[1].address)[0] == 0
    assert http_origin.count("/data") == 10
    block = look(nodes, info)[3]
    node = nodes.running[block.owners[1]].node
    with node.step() as state:
        entry = state.index.find(block.key)
        assert entry != index.NONE
        node.entry_memory(entry)[5] ^= 1
    code, printed, _ = shoal("warm", url, "--json", "--address", nodes[1].address)
    result = json.loads(printed)
    assert code == 0 and result["corrupt"] == 1 and result["missing"] == {}
    assert not look(nodes, info)[3].lacking and http_origin.count("/data") == 10


def test_warm_names_what_is_missing(shoal: Shoal, nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(2, replica_count=2)
    good, bad = (http_origin.put(f"/{name}", os.urandom(2 * BLOCK)) for name in ("good", "bad"))
    with shoal_package.connect(nodes[1].address) as client:
        client.info(bad)
    http_origin.delete("/bad")
    code, printed, errors = shoal("warm", good, bad, "--address", nodes[1].address)
    assert code == 1 and printed == "1 of 2 objects completely in the cache\n"
    assert errors.startswith(f"shoal: {bad}: ") and errors.count("\n") == 1


def test_warm_is_not_complete_with_too_few_owners(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2)
    url, _ = make_object(6 * BLOCK)
    nodes.stop(3)
    code, _, errors = shoal("warm", url, "--address", nodes[1].address)
    assert code == 0, "two are left to hold two copies"
    assert "node-3 does not answer, others stand in for it" in errors
    nodes.stop(2)
    code, printed, errors = shoal("warm", url, "--address", nodes[1].address)
    assert code == 1 and printed == "0 of 1 object completely in the cache\n"
    assert "cannot be asked, and no other node stands in" in errors


def test_warm_gets_over_an_origin_that_fails_for_a_while(shoal: Shoal, nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(2, replica_count=2, overrides=ONE_GET_A_BLOCK)
    url = http_origin.put("/data", os.urandom(6 * BLOCK))
    http_origin.fail("/data", Fault(status=503, times=4))
    assert shoal("warm", url, "--address", nodes[1].address)[0] == 0
    assert not any(block.lacking for block in look(nodes, url))


def test_warm_goes_on_without_a_node_that_ends_meanwhile(shoal: Shoal, nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, replica_count=1, overrides=ONE_GET_A_BLOCK)
    url = http_origin.put("/data", os.urandom(40 * BLOCK))
    gate = threading.Event()
    http_origin.fail("/data", Fault(gate=gate))
    with ThreadPoolExecutor(1) as pool:
        warming = pool.submit(main, ["warm", url, "--address", nodes[1].address])
        http_origin.await_requests("/data", 3)
        ending = threading.Thread(target=nodes.stop, args=(3,))
        ending.start()
        waiting.until(lambda: not _accepts(nodes.rows["node-3"]["addresses"][0]), "node-3 takes no connection")
        gate.set()
        assert warming.result(50) == 0
        ending.join()
    assert not any(block.lacking for block in look(nodes, url))


def _accepts(address: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1).close()
    except OSError:
        return False
    return True


def test_warm_of_more_than_all_nodes_hold_says_so(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(2, replica_count=2, overrides={"dram": {"budget_bytes": "16MiB"}})
    url, _ = make_object(30_000_000)
    code, printed, errors = shoal("warm", url, "--address", nodes[1].address)
    assert code == 1 and printed == "0 of 1 object completely in the cache\n"
    first, second, *_ = errors.splitlines()
    assert first == (
        "shoal: 28.6 MiB asked for, 2 times, and all nodes together hold 32.0 MiB;"
        " what comes first will be evicted again"
    )
    assert second.startswith(f"shoal: {url}: ") and (": evicted at node-" in second or "can make room" in second)

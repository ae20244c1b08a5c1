"""The `shoal` command over a cluster of real nodes: what it shows of them, and what it has them do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shoal as shoal_package
from shoal.cli import drain
from tests.client.cluster_commands import Shoal, look, shoal
from tests.support import waiting
from tests.support.http_origin import HttpOrigin
from tests.support.nodes import Nodes, in_process_node, nodes
from tests.support.objects import MakeObject
from tests.support.running_node import MakeInProcess

__all__ = ["in_process_node", "nodes", "shoal"]

BLOCK = 64 << 10


def rows(printed: str) -> dict[str, list[str]]:
    """Cells by the first one. Cells are two spaces apart at least."""
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in printed.splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def documents(printed: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in printed.splitlines()]


# nodes


def test_nodes_as_the_view_names_them_and_as_they_are(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=3, zones=3)
    nodes.rows["node-2"]["rack"] = "r7"
    nodes.publish()
    url, _ = make_object(3 * BLOCK)
    assert shoal("warm", url, "--address", nodes[1].address)[0] == 0
    code, printed, errors = shoal("nodes", "--address", nodes[1].address)
    assert (code, errors) == (0, "")
    table = rows(printed)
    assert list(table) == ["NODE", "node-1", "node-2", "node-3"]
    assert table["node-1"] == ["ready", "zone-1", "-", "1.00 GiB", "192 KiB", "-", "3", "2", "this host", "answers"]
    assert table["node-2"] == ["ready", "zone-2", "r7", "1.00 GiB", "192 KiB", "-", "3", "2", "another zone", "answers"]


def test_a_node_that_is_gone_and_one_with_an_old_view_are_seen(
    shoal: Shoal, nodes: Nodes, in_process_node: MakeInProcess, tmp_path: Path
) -> None:
    nodes.start(3)
    old = tmp_path / "old.json"
    # node-4 follows another file, which nobody brings up to date. Named in the view it would be told by the others.
    old.write_text(nodes.view_file.read_text())
    late = in_process_node({"node_name": "node-4", "cluster": {"view": str(old), "poll_s": 0.05}})
    waiting.until(lambda: late.node.epoch == 1, "it has the first view")
    nodes.stop(3)
    del nodes.rows["node-3"]
    stopped = {"id": "node-3", "addresses": ["tcp:127.0.0.1:1"], "capacity_bytes": 1, "status": "ready"}
    nodes.rows |= {"a-gone": stopped | {"id": "a-gone", "status": "gone"}, "a-silent": stopped | {"id": "a-silent"}}
    nodes.publish()
    code, printed, errors = shoal("nodes", "--address", nodes[1].address)
    table = rows(printed)
    assert code == 0 and "node-3" not in table
    assert table["a-gone"][-1] == "not asked" and table["a-silent"][-1] == "no answer"
    assert "a-silent does not answer" in errors and "a-gone" not in errors
    found = {row["id"]: row for row in documents(shoal("nodes", "--json", "--address", nodes[1].address)[1])}
    assert found["a-silent"]["silent"] and found["a-silent"]["blocks"] is None and found["a-silent"]["dead_for"] == []
    assert found["node-1"]["epoch"] == 2 and found["node-1"]["distance"] == "this host"
    _, printed, errors = shoal("nodes", "--address", late.address)
    assert "2" in rows(printed)["node-1"], "the node there has an old view, and the others know better"


def test_one_node_without_a_view(shoal: Shoal, in_process_node: MakeInProcess, make_object: MakeObject) -> None:
    node = in_process_node()
    url, _ = make_object(2 * BLOCK)
    _, printed, _ = shoal("nodes", "--address", node.address)
    assert rows(printed)["node-1"] == ["ready", "-", "-", "48.0 MiB", "0 B", "-", "0", "0", "this host", "answers"]
    assert shoal("locate", url, "--address", node.address)[1].splitlines()[1].split() == [
        "0", "64.0", "KiB", "node-1", "[this", "host]", "nobody",
    ]  # fmt: skip
    code, printed, _ = shoal("explain", url, "--block", "1", "--address", node.address)
    assert code == 0 and "  1. node-1, this host: shares its memory with this process" in printed
    assert "from node-1, which brought it from the origin" in printed
    assert shoal("drain", "node-1", "--address", node.address)[:2] == (
        0, "node-1: 0 blocks, 0 B handed over; it takes no more readers and can be stopped\n",
    )  # fmt: skip


# locate


def test_locate_shows_owners_and_holders_of_each_block(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2, zones=2)
    url, _ = make_object(4 * BLOCK + 1)
    shoal("warm", url, "--address", nodes[1].address)
    with shoal_package.connect(nodes[1].address) as client:
        client.read(url)
    code, printed, _ = shoal("locate", url, "--address", nodes[1].address)
    table = rows(printed)
    assert code == 0 and table["BLOCK"] == ["SIZE", "OWNERS", "HELD BY"]
    assert table["4"][0] == "1 B"
    for block in look(nodes, url):
        places = {"node-1": "zone-1, this host", "node-2": "zone-0, another zone", "node-3": "zone-1, same zone"}
        owners = ", ".join(f"{node_id} [{places[node_id]}]" for node_id in block.owners)
        assert table[str(block.number)][1:] == [owners, ", ".join(f"{node_id} DRAM" for node_id in block.owners)]
    everybody = documents(shoal("locate", url, "--all", "--json", "--address", nodes[1].address)[1])
    assert [each["block"] for each in everybody] == [0, 1, 2, 3, 4]
    for each, block in zip(everybody, look(nodes, url), strict=True):
        assert each["holders"]["node-1"] == (["dram"] if "node-1" in block.owners else ["dram", "near"])
        assert [owner["id"] for owner in each["owners"]] == list(block.owners)


def test_locate_sums_up_many_blocks(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=1)
    url, _ = make_object(40 * BLOCK)
    with shoal_package.connect(nodes[1].tcp_address) as client:
        client.read(url, 0, 10 * BLOCK)
    _, printed, _ = shoal("locate", url, "--address", nodes[1].address)
    table = rows(printed)
    assert table["blocks"] == ["40 of 64.0 KiB"]
    assert table["held by all owners"] == ["10 (25 %)"] and table["held by none"] == ["30 (75 %)"]
    owned = {name: int(table[name][0]) for name in ("node-1", "node-2", "node-3")}
    held = {name: int(table[name][1]) for name in owned}
    assert sum(owned.values()) == 40 and sum(held.values()) == 10
    _, printed, _ = shoal("locate", url, "--blocks", "8-11", "--address", nodes[1].address)
    table = rows(printed)
    assert list(table) == ["BLOCK", "8", "9", "10", "11"]
    assert table["9"][2].startswith("node-") and table["10"][2] == "nobody"
    code, _, errors = shoal("locate", url, "--blocks", "40-", "--address", nodes[1].address)
    assert code == 1 and "has 40 blocks" in errors


@pytest.mark.parametrize("words", [("--blocks", "9-2"), ("--blocks", "x"), ("--blocks", "-")])
def test_wrong_blocks_are_usage(shoal: Shoal, words: tuple[str, ...]) -> None:
    assert shoal("locate", "file:///x", *words)[0] == 2
    assert shoal("explain", "file:///x", "--block", "x")[0] == 2


def test_locate_names_who_does_not_answer(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2)
    url, _ = make_object(10 * BLOCK)
    nodes.stop(2)
    code, printed, errors = shoal("locate", url, "--address", nodes[1].address)
    assert code == 0 and "shoal: node-2 does not answer: " in errors
    assert any("node-2 [zone-0, same zone, no answer]" in line for line in printed.splitlines())


# explain


def test_explain_says_why_and_reads(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2)
    url, _ = make_object(2 * BLOCK)
    address = nodes[2].tcp_address
    code, printed, errors = shoal("explain", url, "--address", address)
    assert (code, errors) == (0, "")
    first = look(nodes, url)[0].owners[0]
    assert f"  1. {first}, another zone: does not hold it; owner 1 of 2; the next is asked as well after 1" in printed
    assert "state    never stored\n" in printed and "  3. the origin: when no node gives it: file://" in printed
    assert f"from {first}, which brought it from the origin" in printed
    (found,) = documents(shoal("explain", url, "--json", "--address", address)[1])
    assert found["state"] == "held" and found["read"]["error"] is None and found["age_s"] is None
    shoal("evict", url, "--address", address)
    code, printed, _ = shoal("explain", url, "--address", address)
    assert "state    dropped, " in printed and ": it was dropped by command" in printed


def test_explain_of_what_cannot_be_read_fails(shoal: Shoal, nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(2)
    url = http_origin.put("/data", b"x" * 100)
    with shoal_package.connect(nodes[1].address) as client:
        client.info(url)
    http_origin.delete("/data")
    code, printed, _ = shoal("explain", url, "--address", nodes[1].address)
    assert code == 1 and "The read failed after " in printed and url in printed


# drain


def filled(nodes: Nodes, shoal: Shoal, make_object: MakeObject, count: int = 40) -> str:
    url, _ = make_object(count * BLOCK)
    assert shoal("warm", url, "--address", nodes[1].address)[0] == 0
    return url


def test_drain_hands_everything_over_and_says_how_much(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2)
    url = filled(nodes, shoal, make_object)
    owned = sum("node-2" in block.owners for block in look(nodes, url))
    code, printed, errors = shoal("drain", "node-2", "--address", nodes[1].address)
    assert (code, errors) == (0, "")
    assert printed.splitlines()[0] == f"node-2 is draining in the view of epoch 2 ({nodes.view_file})"
    assert printed.splitlines()[1].startswith(f"node-2: {owned} blocks, ")
    assert printed.endswith("it takes no more readers and can be stopped\n")
    view = json.loads(nodes.view_file.read_text())
    assert view["epoch"] == 2 and [node["status"] for node in view["nodes"]] == ["ready", "draining", "ready"]
    waiting.until(lambda: all(node.node.epoch == 2 for node in nodes.running.values()), "every node follows")
    for block in look(nodes, url):
        assert set(block.owners) == {"node-1", "node-3"} and not block.lacking
    code, printed, _ = shoal("drain", "node-2", "--cancel", "--address", nodes[1].address)
    assert code == 0 and printed.splitlines()[1] == "node-2 stays"
    assert json.loads(nodes.view_file.read_text())["nodes"][1]["status"] == "ready"
    assert not nodes[2].node.draining and not nodes[2].node.refusing


def test_drain_with_a_view_that_cannot_be_written_says_so(shoal: Shoal, nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3)
    filled(nodes, shoal, make_object)
    nodes.view_file.unlink()  # the nodes go on with what they know
    code, printed, errors = shoal("drain", "node-2", "--address", nodes[1].address)
    assert code == 0 and "only node-2 itself was told" in errors and "--view FILE" in errors
    assert printed.startswith("node-2: ") and not nodes.view_file.exists()


def test_drain_with_a_view_that_is_given(shoal: Shoal, nodes: Nodes, tmp_path: Path) -> None:
    nodes.start(2)
    other = tmp_path / "other.json"
    other.write_text(nodes.view_file.read_text().replace("node-2", "node-x"))
    code, _, errors = shoal("drain", "node-2", "--view", other, "--address", nodes[1].address)
    assert code == 1 and "other.json: names no node node-2" in errors
    assert not nodes[2].node.draining, "the view comes first"
    words = ("drain", "node-2", "--view", nodes.view_file, "--json", "--no-wait", "--address", nodes[1].address)
    code, printed, _ = shoal(*words)
    assert code == 0 and documents(printed)[0]["epoch"] == 2 and nodes[2].node.draining


def test_drain_of_a_node_that_is_not_there(shoal: Shoal, nodes: Nodes) -> None:
    nodes.start(2)
    code, _, errors = shoal("drain", "node-9", "--address", nodes[1].address)
    assert code == 1 and errors == "shoal: node-9: no node of that name; the view names node-1, node-2\n"
    nodes.stop(2)
    code, _, errors = shoal("drain", "node-2", "--address", nodes[1].address)
    assert code == 1 and "node-2 does not answer, so it hands nothing over" in errors
    assert json.loads(nodes.view_file.read_text())["epoch"] == 1


def test_drain_that_nobody_takes_over_fails(
    shoal: Shoal, nodes: Nodes, make_object: MakeObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.start(2)
    filled(nodes, shoal, make_object)
    nodes[1].node.draining = True  # it takes nothing over any more
    monkeypatch.setattr(drain, "STALL_S", 0.5)
    code, printed, errors = shoal("drain", "node-2", "--address", nodes[1].address)
    assert code == 1 and "blocks are left" in errors and "can be stopped" not in printed
    nodes[1].node.draining = False


# The node's numbers


def test_stat_and_top_show_what_a_node_does_with_the_others(
    shoal: Shoal, nodes: Nodes, make_object: MakeObject
) -> None:
    nodes.start(2)
    url, _ = make_object(30 * BLOCK)
    with shoal_package.connect(nodes[1].address) as client:
        client.read(url)
    _, printed, _ = shoal("stat", "--address", nodes[1].address)
    table = rows(printed)
    near = nodes[1].node.peers
    assert near is not None and near.near.bytes
    blocks = near.near.bytes // BLOCK
    assert table["cluster"] == ["epoch 1, 2 nodes"]
    assert table["from peers"][0].startswith(f"{blocks} blocks, ") and table["near copies"] != ["0 B"]
    code, printed, _ = shoal("top", "--once", "--interval", "0.1", "--address", nodes[1].address)
    assert code == 0 and "epoch 1, 2 nodes, from peers 0 B/s, near copies " in printed
    assert "peers" in printed.splitlines()[2]

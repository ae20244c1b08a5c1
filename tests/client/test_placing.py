"""Where blocks belong and where they are, over real nodes: owners, holders, what is missed and why, who is silent."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

import shoal
from shoal import explaining, members, placing
from shoal_core import index, keys
from shoal_core.errors import BadRequest, ConfigError, NodeGone, NotFound, ShoalError
from shoal_core.placement import Placement
from shoal_core.routing import Distance
from shoal_core.verbs import evict as evict_verb
from shoal_core.verbs import holding
from tests.support import waiting
from tests.support.http_origin import HttpOrigin
from tests.support.nodes import Nodes, in_process_node, nodes
from tests.support.objects import MakeObject
from tests.support.running_node import MakeInProcess

__all__ = ["in_process_node", "nodes"]

BLOCK = 64 << 10


def look(client: shoal.Client, info: shoal.ObjectInfo, *, everybody: bool = False) -> list[placing.Block]:
    known = client.members()
    blocks = placing.look(known, list(placing.all_blocks([info])), waiting.deadline())
    if everybody:
        placing.ask_everybody(known, blocks, waiting.deadline())
    return blocks


def touch_owners(client: shoal.Client, info: shoal.ObjectInfo) -> None:
    """Every block at every one of its owners, first of all at the first."""
    blocks = placing.place(client.members(), list(placing.all_blocks([info])))
    for wanted in (
        [(info, block.number, block.owners[0]) for block in blocks],
        [(info, block.number, node_id) for block in blocks for node_id in block.owners[1:]],
    ):
        assert client._routed.touch(wanted, 16, waiting.deadline()) == [None] * len(wanted)


def test_owners_are_those_of_the_placement_and_hold_what_was_read(nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2, zones=2)
    url, data = make_object(30 * BLOCK + 7)
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        assert all(not block.holders and len(block.lacking) == 2 for block in look(client, info))
        client.read(url)
        touch_owners(client, info)
        blocks = look(client, info, everybody=True)
        known = client.members().view
        assert known is not None
        line = Placement(known, 8)
        for number, block in enumerate(blocks):
            key = keys.block_key(info.fingerprint, number)
            assert (block.number, block.key, block.size) == (number, key, min(BLOCK, len(data) - number * BLOCK))
            assert block.owners == tuple(known.nodes[place].id for place in line.owners_of(key)[:2]) == block.acting
            assert not block.lacking
            assert all(block.holders[node_id] == holding.DRAM for node_id in block.owners)
            # Read through the node at home, which keeps a near copy of what others own.
            assert block.holders["node-1"] == holding.DRAM | (holding.NEAR if "node-1" not in block.owners else 0)
        assert {node_id for block in blocks for node_id in block.owners} == {"node-1", "node-2", "node-3"}


def test_a_node_without_a_view_owns_everything(in_process_node: MakeInProcess, make_object: MakeObject) -> None:
    node = in_process_node()
    url, _ = make_object(3 * BLOCK)
    with shoal.connect(node.address) as client:
        info = client.info(url)
        client.read(url, 0, 1)
        known = client.members()
        assert known.alone and known.answering == ["node-1"] and known.distance(known.nodes[0]) == Distance.NODE
        blocks = look(client, info, everybody=True)
        assert [block.owners for block in blocks] == [("node-1",)] * 3
        assert [block.holders for block in blocks] == [{"node-1": holding.DRAM}, {}, {}]
        client.evict(url)
        (first, *_) = look(client, info)
        assert first.endings["node-1"].reason == "dropped" and not first.holders


def test_who_does_not_answer_is_named_and_the_next_in_line_stand_in(nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2)
    url, _ = make_object(20 * BLOCK)
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        before = look(client, info)
        nodes.stop(3)
        known = client.members()
        assert set(known.silent) == {"node-3"} and known.silent["node-3"]
        blocks = placing.look(known, list(placing.all_blocks([info])), waiting.deadline())
        assert [block.owners for block in blocks] == [block.owners for block in before]
        assert all(set(block.acting) == {"node-1", "node-2"} for block in blocks)


def test_a_node_that_takes_connections_and_says_nothing_hangs_nobody(
    nodes: Nodes, make_object: MakeObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "PING_S", 0.2)
    nodes.start(2)
    url, _ = make_object(4 * BLOCK)
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        nodes.rows["node-3"] = nodes.rows["node-2"] | {
            "id": "node-3", "addresses": [f"tcp:127.0.0.1:{dumb.getsockname()[1]}"],
        }  # fmt: skip
        nodes.publish()
        with shoal.connect(nodes[1].address) as client:
            known = client.members()
            assert set(known.silent) == {"node-3"} and set(known.answering) == {"node-1", "node-2"}
            blocks = placing.look(known, list(placing.all_blocks([client.info(url)])), waiting.deadline())
            assert all("node-3" not in block.acting for block in blocks)


def test_a_bad_copy_is_found_by_hashing_and_counts_as_none(nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(2, replica_count=2)
    url, _ = make_object(2 * BLOCK)
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        touch_owners(client, info)
        spoil(nodes, 2, keys.block_key(info.fingerprint, 1))
        wanted = list(placing.all_blocks([info]))
        assert [block.lacking for block in look(client, info)] == [[], []], "nobody looked at the bytes"
        good, bad = placing.look(client.members(), wanted, waiting.deadline(), verify=True)
        assert not good.lacking and bad.lacking == ["node-2"]
        assert bad.holders["node-2"] & holding.CORRUPT and bad.is_held_by("node-1")
        _, bad = look(client, info)
        if "node-2" in bad.holders:  # brought anew by now
            _, bad = placing.look(client.members(), wanted, waiting.deadline(), verify=True)
            assert bad.is_held_by("node-2") and not bad.lacking
        else:
            assert bad.endings["node-2"].reason == "corrupt"


def spoil(nodes: Nodes, number: int, key: bytes) -> None:
    """Turn a byte of a node's copy in memory."""
    node = nodes[number].node
    with node.step() as state:
        entry = state.index.find(key)
        assert entry != index.NONE
        memory = node.entry_memory(entry)
        memory[10] ^= 1


# Touching


def test_a_touch_brings_a_block_to_the_node_that_is_named(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(3, replica_count=1, overrides={"fill": {"range_bytes_max": BLOCK}})
    url = http_origin.put("/data", os.urandom(12 * BLOCK))
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        touch_owners(client, info)
        assert http_origin.count("/data") == 12
        blocks = look(client, info, everybody=True)
        assert [set(block.holders) for block in blocks] == [set(block.owners) for block in blocks], "nothing at home"


def test_what_cannot_be_brought_says_why(nodes: Nodes, http_origin: HttpOrigin) -> None:
    nodes.start(2)
    url = http_origin.put("/data", os.urandom(BLOCK))
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        http_origin.delete("/data")
        (owner,) = placing.place(client.members(), [(info, 0)])[0].owners
        gone, nobody = client._routed.touch([(info, 0, owner), (info, 0, "node-9")], 16, waiting.deadline())
        assert isinstance(gone, NotFound) and "/data" in str(gone)
        assert isinstance(nobody, NodeGone)


# inspect, evict, declare


def test_inspect_counts_a_block_once(nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2)
    url, data = make_object(6 * BLOCK + 1)
    other, _ = make_object(3 * BLOCK, "other")
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        client.read(url)
        touch_owners(client, info)
        client.read(other, BLOCK, 1)
        whole, part = client.inspect([url, other])
        assert whole == shoal.Residency(url, len(data), len(data), 0, 7, True)
        assert (part.block_count, part.dram_bytes, part.resident) == (1, BLOCK, False)


def test_what_only_others_than_its_owners_hold_is_counted_and_is_not_resident(
    nodes: Nodes, make_object: MakeObject
) -> None:
    nodes.start(3)
    url, data = make_object(30 * BLOCK)
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        client.read(url)
        known = client.members()
        assert client.inspect([info])[0].resident
        request = evict_verb.Request([info.fingerprint])
        known.ask(evict_verb.KIND, dict.fromkeys(["node-2", "node-3"], request), waiting.deadline())
        mine = [block.owners == ("node-1",) for block in look(client, info)]
        (found,) = client.inspect([info])
        assert not all(mine) and not found.resident
        assert (found.block_count, found.dram_bytes) == (30, len(data))


def test_evict_drops_every_copy(nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=1)
    url, _ = make_object(30 * BLOCK)
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        client.read(url)
        touch_owners(client, info)
        copies = sum(len(block.holders) for block in look(client, info, everybody=True))
        assert copies > 30, "near copies at home"
        assert client.evict(url) == copies
        assert not any(block.holders for block in look(client, info, everybody=True))
        assert client.inspect([info])[0].block_count == 0


def test_evict_says_who_could_not_be_asked_when_the_others_have_done_it(nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3, replica_count=2)
    url, _ = make_object(5 * BLOCK)
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        client.read(url)
        nodes.stop(3)
        with pytest.raises(NodeGone, match=r"blocks dropped, but these nodes could not be asked: node-3 \("):
            client.evict(url)
        assert not any(block.holders for block in look(client, info, everybody=True))


def test_a_dataset_is_declared_at_every_node(nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3)
    url, data = make_object(4 * BLOCK, "set/a")
    folder = url.rpartition("/")[0]
    with shoal.connect(nodes[1].address) as client:
        client.declare_dataset("set", folder, replicas=2)
        assert all("set" in spaces(nodes, number) for number in (1, 2, 3))
        assert client.read("shoal://set/a") == data
        assert {len(block.owners) for block in look(client, client.info("shoal://set/a"))} == {2}
        with pytest.raises((BadRequest, ConfigError), match="ttl_s"):
            client.declare_dataset("bad", folder, ttl_s=-1.0)
        assert not any("bad" in spaces(nodes, number) for number in (1, 2, 3))
        nodes.stop(3)
        with pytest.raises(NodeGone, match="dataset late declared, but these nodes could not be asked: node-3"):
            client.declare_dataset("late", folder)
        assert client.read("shoal://late/a") == data


def spaces(nodes: Nodes, number: int) -> set[str]:
    with nodes[number].node.step() as state:
        return {space.name for space in state.spaces}


# Why


@pytest.fixture
def explained(nodes: Nodes) -> Iterator[tuple[Nodes, shoal.Client]]:
    nodes.start(3, replica_count=2)
    with shoal.connect(nodes[1].tcp_address) as client:
        yield nodes, client


def explain(client: shoal.Client, info: shoal.ObjectInfo) -> explaining.Explanation:
    return explaining.explain(client, info, 0)


def test_a_block_nobody_had_and_then_has(explained: tuple[Nodes, shoal.Client], make_object: MakeObject) -> None:
    _, client = explained
    info = client.info(make_object(BLOCK)[0])
    found = explain(client, info)
    assert found.state == "never stored" and found.age_s is None
    assert [step.node_id for step in found.steps[:2]] == list(found.block.owners) and found.steps[2].node_id is None
    assert "does not hold it" in found.steps[0].reasons and "owner 1 of 2" in found.steps[0].reasons
    assert found.trace.error is None and found.trace.tier == "origin"
    assert found.trace.node_id == found.block.owners[0], "a client of another host asks the first owner itself"
    found = explain(client, info)
    assert found.state == "held" and not found.passed_over
    reasons = {step.node_id: step.reasons for step in found.steps}
    assert "holds it" in reasons[found.block.owners[0]]
    # Who answered a moment ago counts as busier, so it may be the other owner's turn.
    tier = "dram" if "holds it" in found.steps[0].reasons else "peer"
    assert (found.trace.node_id, found.trace.tier) == (found.steps[0].node_id, tier)


@pytest.mark.parametrize("reason", sorted(explaining.ENDINGS))
def test_a_block_that_went_says_why(
    explained: tuple[Nodes, shoal.Client], make_object: MakeObject, reason: str
) -> None:
    nodes, client = explained
    info = client.info(make_object(BLOCK)[0])
    (block,) = look(client, info)
    node = nodes.running[block.owners[1]].node
    with node.step():
        node.endings.note(block.key, reason, node.now_s() - 90)
    found = explain(client, info)
    assert found.state == reason and found.age_s is not None and 90 <= found.age_s < 90 + waiting.DEADLINE_S
    assert found.why == f"{reason} at {block.owners[1]}: {explaining.ENDINGS[reason]}"


def test_another_version_is_named_with_who_holds_it(
    explained: tuple[Nodes, shoal.Client], make_object: MakeObject
) -> None:
    _, client = explained
    url, _ = make_object(BLOCK, "set/a")
    before = client.info(url)
    client.read(before)
    owner = look(client, before)[0].good_holders[0]
    make_object(BLOCK + 1, "set/a")
    (after,) = client.list(url.rpartition("/")[0])
    assert after.etag != before.etag
    found = explain(client, after)
    assert found.state == "other version"
    text, _, holders = found.why.partition("; ")[0].partition(", held by ")
    assert text == f"version {before.etag} ({BLOCK} bytes)" and owner in holders.split(", ")
    assert found.why.endswith(f"; the origin now has {after.etag} ({BLOCK + 1} bytes)")


def test_copies_at_others_than_the_owners_are_near(nodes: Nodes, make_object: MakeObject) -> None:
    nodes.start(3)
    url, _ = make_object(30 * BLOCK)
    with shoal.connect(nodes[1].address) as client:
        info = client.info(url)
        client.read(url)
        block = next(block for block in look(client, info) if block.owners != ("node-1",))
        request = evict_verb.Request([info.fingerprint])
        client.members().ask(evict_verb.KIND, dict.fromkeys(["node-2", "node-3"], request), waiting.deadline())
        found = explaining.explain(client, info, block.number)
        assert found.state == "near" and found.why == "held by node-1, but by none of its owners"
        assert found.steps[0].node_id == "node-1" and "shares its memory" in found.steps[0].reasons[0]
        assert (found.trace.node_id, found.trace.tier) == ("node-1", "dram")


def test_who_is_passed_over_and_for_how_long(explained: tuple[Nodes, shoal.Client], make_object: MakeObject) -> None:
    _, client = explained
    info = client.info(make_object(BLOCK)[0])
    first, second = look(client, info)[0].owners
    router, now_ns = client._routed.router, time.monotonic_ns()
    with client._routed.lock:
        for place in range(4):
            for node_id in (first, second) if place == 0 else (first,):
                node = router.node(router.view.position(node_id))
                router.began(node, now_ns)
                router.failed(node, now_ns)
        router.peer(first).retry_at_ns = now_ns + 3_600_000_000_000
    found = explain(client, info)
    (over,) = found.passed_over
    assert over.node_id == first
    assert over.reasons[0].startswith("failed 4 times in a row: left alone for 3")
    assert [step.node_id for step in found.steps][-1] is None and len(found.steps) == 3
    by_id = {step.node_id: step.reasons for step in found.steps}
    assert any(reason.startswith("failed 1 times, last ") for reason in by_id[second])
    (third,) = {"node-1", "node-2", "node-3"} - {first, second}
    assert "in line after the owners" in by_id[third]


def test_a_draining_node_is_passed_over(explained: tuple[Nodes, shoal.Client], make_object: MakeObject) -> None:
    nodes, client = explained
    info = client.info(make_object(BLOCK)[0])
    client.read(info)
    first = look(client, info)[0].owners[0]
    nodes.rows[first]["status"] = "draining"
    nodes.publish()
    found = explain(client, info)
    assert first not in found.block.owners
    (over,) = found.passed_over
    assert (over.node_id, over.reasons) == (first, ["draining: owns nothing any more", "holds it"])


def test_there_is_no_such_block(explained: tuple[Nodes, shoal.Client], make_object: MakeObject) -> None:
    _, client = explained
    for size, number in ((2 * BLOCK, 2), (0, 0), (BLOCK, -1)):
        with pytest.raises(BadRequest, match="there is no block"):
            explaining.explain(client, client.info(make_object(size, f"{size}")[0]), number)


def test_nobody_answers() -> None:
    with shoal.connect("tcp:127.0.0.1:1") as client, pytest.raises(ShoalError):
        client.members()

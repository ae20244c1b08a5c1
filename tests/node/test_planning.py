"""Plans at a node at work: prefetch in order and after demand, eviction by next use, and streams that die."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal import errors
from shoal.planning import Planner
from shoal_core import index, keys, limits
from shoal_core.verbs import plan
from shoal_node import planning
from tests.support import waiting
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.running_node import InProcessNode, MakeInProcess, MakeProcess

BLOCK = 64 << 10
STREAM = b"stream-of-a-test"


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    """Memory for some ninety blocks, and one fill at a time."""
    return in_process_node({"dram": {"budget_bytes": "8MiB"}, "fill": {"concurrency": 1, "range_bytes_max": BLOCK}})


@pytest.fixture
def client(node: InProcessNode) -> Iterator[shoal.Client]:
    with shoal.connect(node.memory) as client:
        yield client


@pytest.fixture
def over_tcp(node: InProcessNode) -> Iterator[shoal.Client]:
    with shoal.connect(node.tcp_address) as client:
        yield client


def in_dram(node: InProcessNode, client: shoal.Client, url: str, blocks: range) -> set[int]:
    fingerprint = client.info(url).fingerprint
    with node.node.step() as state:
        return {block for block in blocks if state.lookup(keys.block_key(fingerprint, block)) != index.NONE}


def ranges(origin: HttpOrigin) -> list[int]:
    """Blocks in the order in which they were asked for."""
    starts = (seen.range.removeprefix("bytes=").partition("-")[0] for seen in origin.seen if seen.method == "GET")
    return [int(start) // BLOCK for start in starts]


def capacity_of(node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin) -> int:
    """Fill the memory with blocks that nobody uses again; how many blocks it holds."""
    url = http_origin.put("/filler", bytes(200 * BLOCK))
    client.read(url)
    client.read(url)
    return node.node.status()["tiers"]["dram"]["blocks"]


def test_what_is_used_before_the_bound_is_filled_in_the_order_given(
    node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin
) -> None:
    url = http_origin.put("/data", os.urandom(12 * BLOCK))
    info = client.info(url)
    order = [7, 2, 9, 4, 0]
    uses = [(info, block, 1, at) for at, block in enumerate(order)] + [(info, 11, 1, 5), (info, 3, 1, 6)]
    assert Planner(client, STREAM).send(0, uses, 5) == 7
    waiting.until(lambda: in_dram(node, client, url, range(12)) == set(order), "what is used before 5, and only that")
    assert ranges(http_origin) == order
    assert node.node.status()["prefetches"] == {"filled": 5, "joined": 0, "dropped": 0}
    client.read(url, 7 * BLOCK, BLOCK)
    assert ranges(http_origin) == order


def test_who_waits_comes_before_prefetches_also_for_one_that_waits_its_turn(
    node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin
) -> None:
    data = os.urandom(12 * BLOCK)
    gate = threading.Event()
    url = http_origin.put("/data", data)
    info = client.info(url)
    http_origin.fail("/data", Fault(gate=gate))
    with ThreadPoolExecutor(2) as beside:
        Planner(client, STREAM).send(0, [(info, block, 1, block) for block in range(8)], 100)
        http_origin.await_requests("/data")
        reads = [beside.submit(client.read, url, block * BLOCK, BLOCK) for block in (10, 6)]
        filler = node.node.filler
        waiting.until(lambda: node.node.status()["prefetches"]["joined"] == 1 and filler.running == 9)
        # The loop has no more to do with what was asked for: both wait for their turns by now.
        node.node.loop.call_soon_threadsafe(gate.set)
        assert [read.result(10) for read in reads] == [data[block * BLOCK :][:BLOCK] for block in (10, 6)]
    waiting.until(lambda: len(ranges(http_origin)) == 9, "the others follow")
    first, second, third, *rest = ranges(http_origin)
    assert first == 0 and {second, third} == {10, 6}
    assert rest == [1, 2, 3, 4, 5, 7]


def test_what_is_used_last_goes_first_and_what_is_used_sooner_is_not_pushed_out(
    node: InProcessNode, over_tcp: shoal.Client, http_origin: HttpOrigin
) -> None:
    client = over_tcp
    capacity = capacity_of(node, client, http_origin)
    url = http_origin.put("/data", os.urandom(2 * capacity * BLOCK))
    info = client.info(url)
    planner = Planner(client, STREAM)
    every = [(info, block, 1, block) for block in range(2 * capacity)]
    accepted = done = 0
    while done < capacity:
        accepted = planner.send(0, every[done:], 2 * capacity)
        done += accepted
        waiting.until(lambda: not node.node.arrivals.flight_count, "all that was accepted is there")
        assert accepted, "there is room for blocks that are used sooner than none"
    there = in_dram(node, client, url, range(2 * capacity))
    assert there == set(range(capacity)), "the first, whole"
    assert planner.send(0, every, 2 * capacity) == capacity
    # One that is used before all others pushes out the one that is used last.
    assert planner.send(0, [(info, capacity + 5, 1, 0)], 2 * capacity) == 1
    waiting.until(lambda: capacity + 5 in in_dram(node, client, url, range(2 * capacity)))
    assert in_dram(node, client, url, range(2 * capacity)) == {*range(capacity - 1), capacity + 5}
    assert node.node.status()["prefetches"]["dropped"] == 0


def test_no_more_is_filled_at_once_than_the_limit(
    node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FILLS_PLANNED_MAX", 4)
    gate = threading.Event()
    url = http_origin.put("/data", os.urandom(12 * BLOCK))
    info = client.info(url)
    http_origin.fail("/data", Fault(gate=gate))
    planner = Planner(client, STREAM)
    uses = [(info, 0, 3, 1), (info, 3, 3, 2), (info, 6, 3, 3), (info, 0, 1, 1)]
    assert planner.send(0, uses, 10) == 1, "the second was begun, but is not whole"
    assert planner.send(0, uses[:1] + uses[3:], 10) == 2, "what is on its way counts as dealt with"
    gate.set()
    waiting.until(lambda: in_dram(node, client, url, range(12)) == {0, 1, 2, 3})
    assert planner.send(0, uses[1:], 10) == 1


def test_a_dead_stream_gives_way_and_a_new_one_goes_on(
    node: InProcessNode, over_tcp: shoal.Client, http_origin: HttpOrigin
) -> None:
    client = over_tcp  # who holds no leases, and so does not stand in the way
    url = http_origin.put("/data", os.urandom(4 * BLOCK))
    other = http_origin.put("/other", os.urandom(300 * BLOCK))
    with shoal.connect(node.memory) as loader:
        info = loader.info(url)
        Planner(loader, STREAM).send(1_000_000, [(info, 0, 4, 1_000_010)], 1_000_020)
        waiting.until(lambda: len(in_dram(node, client, url, range(4))) == 4)
        client.read(other)
        client.read(other)
        assert in_dram(node, client, url, range(4)) == {0, 1, 2, 3}, "all else makes room before what is used soon"
        with node.node.step() as state:
            assert state.streams.clock(0).live
    waiting.until(lambda: not clock_lives(node), "the client has gone, and the stream with it")
    client.read(other)
    assert in_dram(node, client, url, range(4)) == set()
    with node.node.step() as state:
        before = state.streams.clock(0).now
    with shoal.connect(node.memory) as loader:
        planner = Planner(loader, b"a resumed stream")
        planner.send(5, [(loader.info(url), 0, 4, 10)], 20)
        waiting.until(lambda: len(in_dram(node, client, url, range(4))) == 4)
        client.read(other)
        assert in_dram(node, client, url, range(4)) == {0, 1, 2, 3}
        with node.node.step() as state:
            assert state.streams.clock(0).now == before
        planner.close()
        assert not clock_lives(node)
        planner.close()


def clock_lives(node: InProcessNode) -> bool:
    with node.node.step() as state:
        return state.streams.clock(0).live


def test_a_plan_of_a_client_that_is_gone_begins_no_stream(
    node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin
) -> None:
    """It may be read when its sender's end was seen already: nothing would ever end the stream."""
    info = client.info(http_origin.put("/data", bytes(BLOCK)))
    request = plan.Request(STREAM, 0, [info.fingerprint], [plan.Use(0, 0, 1, 5)], 0, 0)
    with pytest.raises(errors.BadRequest, match="events connection"):
        planning.answer(node.node, bytes(16), request)
    assert not clock_lives(node)


def test_a_plan_for_what_the_node_forgot_is_made_again(
    node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin
) -> None:
    url = http_origin.put("/data", os.urandom(4 * BLOCK))
    info = client.info(url)
    client.read(url)
    client.evict(url)
    with node.node.step() as state:
        state.objects._records.clear()
    planner = Planner(client, STREAM)
    assert planner.send(0, [(info, 0, 4, 10)], 20) == 1
    waiting.until(lambda: len(in_dram(node, client, url, range(4))) == 4)
    assert planner.send(0, [(info, 2, 100, 10)], 20) == 1, "blocks beyond the end are none"


def test_time_that_training_waited_is_counted(node: InProcessNode, client: shoal.Client) -> None:
    planner = Planner(client, STREAM)
    planner.send(0, [], 0, waited_s=1.5, steps=3)
    planner.send(32, [], 64, waited_s=0.25, steps=1)
    status = node.node.status()
    assert status["loader_wait_seconds"] == 1.75 and status["loader_steps"] == 4


def test_what_was_not_reported_goes_with_the_next_plan(node_process: MakeProcess) -> None:
    node = node_process({})
    with shoal.connect(node.address) as client:
        planner = Planner(client, STREAM)
        assert planner.send(0, [], 10, waited_s=1.0, steps=1) == 0
        node.stop()
        assert planner.send(1, [], 10, waited_s=0.5, steps=1) == 0
        planner.close()
        node.start()

        def reported() -> bool:
            planner.send(2, [], 10)
            return node.status()["loader_steps"] == 1

        waiting.until(reported, "the client has found the node again")
        assert node.status()["loader_wait_seconds"] == 0.5


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"stream": b"short"}, "stream id"),
        ({"uses": [plan.Use(0, 0, 1, 0)]}, "no object"),
        ({"uses": [plan.Use(0, 0, 0, 0)] * (limits.PLAN_USES_MAX + 1)}, "4097 uses"),
        ({"position": -1}, "position"),
        ({"fill_until": limits.STREAM_POSITION_MAX + 1}, "position"),
        ({"evict_until": -1}, "position"),
        ({"waited_s": float("nan")}, "waited_s"),
        ({"steps": -1}, "steps"),
    ],
)
def test_what_is_no_plan_is_refused_by_name(client: shoal.Client, wrong: dict[str, object], named: str) -> None:
    nothing = {"stream": STREAM, "position": 0, "fingerprints": [], "uses": [], "fill_until": 0, "evict_until": 0}
    fields = nothing | wrong
    with pytest.raises(errors.BadRequest, match=named):
        client.session.call(plan.KIND, plan.Request(**fields), waiting.deadline())  # type: ignore[arg-type]


def test_next_uses_go_with_a_block_to_disk_and_back(
    in_process_node: MakeInProcess, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    disk = {"directory": f"{tmp_path}/disk", "budget_bytes": "64MiB"}
    node = in_process_node({"dram": {"budget_bytes": "4MiB"}, "nvme": [disk]})
    url = http_origin.put("/data", os.urandom(160 * BLOCK))
    with shoal.connect(node.tcp_address) as client:
        client.read(url, 0, 40 * BLOCK)
        waiting.until(lambda: client.node_stats()["disk_queue"] == 0, "written behind")
        client.read(url, 40 * BLOCK, 100 * BLOCK)
        info = client.info(url)
        gone = min(set(range(40)) - in_dram(node, client, url, range(40)))
        planner = Planner(client, STREAM)
        planner.send(0, [(info, gone, 1, 500)], 0)
        before = http_origin.count("/data")
        assert planner.send(0, [(info, gone, 1, 500)], 1000) == 1
        waiting.until(lambda: gone in in_dram(node, client, url, range(40)), "read back ahead")
        assert http_origin.count("/data") == before
        with node.node.step() as state:
            entry = state.index.find(keys.block_key(info.fingerprint, gone))
            assert state.disk is not None
            assert state.dram.next_use(entry) == state.disk.next_use(entry) == 500

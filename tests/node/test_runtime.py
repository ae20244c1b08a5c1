"""A node at work: one fill however many ask, reads ahead, complaints, and the way through the disk."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal import errors
from shoal_core import index, keys
from shoal_core.verbs import complain, get
from shoal_node import inspection
from shoal_node.tiers import dram
from tests.support import waiting
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.running_node import InProcessNode, MakeInProcess

BLOCK = 64 << 10


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node({"dram": {"budget_bytes": "8MiB"}, "fill": {"range_bytes_max": 4 * BLOCK}})


@pytest.fixture
def client(node: InProcessNode) -> Iterator[shoal.Client]:
    with shoal.connect(node.memory) as client:
        yield client


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def entry_of(node: InProcessNode, client: shoal.Client, url: str, block: int = 0) -> tuple[int, int]:
    """(entry, generation) of a block; index.NONE when it is not known."""
    with node.node.step() as state:
        entry = state.index.find(keys.block_key(client.info(url).fingerprint, block))
        return entry, state.index.generation[entry] if entry != index.NONE else 0


def test_of_all_who_ask_at_once_one_fetches(
    node: InProcessNode, beside: ThreadPoolExecutor, http_origin: HttpOrigin
) -> None:
    data = os.urandom(4 * BLOCK)
    gate = threading.Event()
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(gate=gate))
    clients = [shoal.connect(address) for address in [node.memory, node.address, node.tcp_address] * 4]
    reads = [beside.submit(client.read, url) for client in clients]
    http_origin.await_requests("/data")
    waiting.until(lambda: all(client.terms() is not None for client in clients))
    gate.set()
    assert all(read.result(10) == data for read in reads)
    assert http_origin.count("/data") == 1, "four neighbouring blocks, one ranged read"
    assert http_origin.count("/data", "HEAD") == 1
    for client in clients:
        client.close()


def test_neighbouring_blocks_travel_together_up_to_a_limit(client: shoal.Client, http_origin: HttpOrigin) -> None:
    data = os.urandom(10 * BLOCK + 1)
    url = http_origin.put("/data", data)
    assert client.read(url) == data
    ranges = sorted(seen.range for seen in http_origin.seen if seen.method == "GET")
    expected = [(0, 4 * BLOCK), (4 * BLOCK, 8 * BLOCK), (8 * BLOCK, 10 * BLOCK + 1)]
    assert ranges == sorted(f"bytes={start}-{end - 1}" for start, end in expected)
    assert all(seen.if_match for seen in http_origin.seen if seen.method == "GET")


def test_who_stops_waiting_strands_nobody(
    node: InProcessNode, client: shoal.Client, beside: ThreadPoolExecutor, http_origin: HttpOrigin
) -> None:
    data = os.urandom(BLOCK)
    gate = threading.Event()
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(gate=gate))
    client.info(url)
    with pytest.raises(errors.DeadlineExceeded):
        client.read(url, deadline_s=0.1)
    patient = beside.submit(client.read, url)
    with pytest.raises(errors.DeadlineExceeded):
        client.read(url, deadline_s=0.1)
    gate.set()
    assert patient.result(10) == data
    assert http_origin.count("/data") == 1
    with node.node.step() as state:
        assert not any(held > 1 for held in state.index.leases), "who had left holds nothing"


def test_a_batch_is_answered_at_its_deadline_with_what_there_is(
    node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin
) -> None:
    gate = threading.Event()
    url = http_origin.put("/data", os.urandom(2 * BLOCK))
    client.read(url, 0, BLOCK)
    http_origin.fail("/data", Fault(gate=gate))
    items = [get.Item(0, block, 0, 10) for block in (0, 1)]
    started = time.monotonic()
    request = get.Request([client.info(url).fingerprint], items, [], 200, False)
    there, missing = client._session.call(get.KIND, request, waiting.deadline()).items
    assert 0.15 < time.monotonic() - started < 3
    assert isinstance(there, get.Grant)
    assert isinstance(missing, get.Failed) and missing.code == errors.DeadlineExceeded.code
    gate.set()
    waiting.until(lambda: client.inspect([url])[0].block_count == 2, "the fill went on")


def test_a_failed_fill_tells_everybody_and_the_next_one_tries_again(
    client: shoal.Client, beside: ThreadPoolExecutor, http_origin: HttpOrigin
) -> None:
    data = os.urandom(BLOCK)
    gate = threading.Event()
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(status=403, gate=gate, times=1))
    client.info(url)
    reads = [beside.submit(client.read, url) for _ in range(3)]
    http_origin.await_requests("/data")
    gate.set()
    outcomes = {type(read.exception(10)) for read in reads}
    assert outcomes <= {errors.Forbidden, type(None)} and errors.Forbidden in outcomes
    assert client.read(url) == data


def test_a_prefetch_fills_and_waits_for_nothing(
    node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin
) -> None:
    data = os.urandom(6 * BLOCK)
    gate = threading.Event()
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(gate=gate))
    started = time.monotonic()
    client.prefetch(url, 2 * BLOCK, 3 * BLOCK)
    assert time.monotonic() - started < 5
    gate.set()
    waiting.until(lambda: client.inspect([url])[0].block_count == 3, "three blocks are there")
    assert entry_of(node, client, url, 1)[0] == index.NONE
    before = http_origin.count("/data")
    assert client.read(url, 2 * BLOCK, 3 * BLOCK) == data[2 * BLOCK : 5 * BLOCK]
    assert http_origin.count("/data") == before


def test_what_is_read_in_order_is_asked_for_ahead(client: shoal.Client, http_origin: HttpOrigin) -> None:
    """A read of more than one batch names the next one while the first is on its way."""
    data = os.urandom(40 * BLOCK)
    url = http_origin.put("/data", data)
    assert client.read(url) == data
    assert len(data) > client.terms().batch_bytes_max
    assert http_origin.count("/data") <= 11, "ten ranges of four blocks, none twice"


def test_a_complaint_without_reason_changes_nothing(
    node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin
) -> None:
    url = http_origin.put("/data", os.urandom(BLOCK))
    client.read(url)
    entry, generation = entry_of(node, client, url)
    assert not inspection.complain(node.node, entry, generation)
    for wrong in ((entry, generation + 1), (entry + 1, 0), (-1, 0), (1 << 31, 0)):
        assert not inspection.complain(node.node, *wrong)
    assert entry_of(node, client, url) == (entry, generation)


def test_bad_memory_is_found_out_by_the_readers_complaint_and_never_used_again(
    node: InProcessNode, http_origin: HttpOrigin
) -> None:
    data = os.urandom(BLOCK)
    url = http_origin.put("/data", data)
    with shoal.connect(node.tcp_address) as client:
        assert client.read(url) == data
        entry, _ = entry_of(node, client, url)
        with node.node.step() as state:
            slot = state.index.dram_slot[entry]
        memory = node.node.slot_memory(slot, BLOCK)
        memory[1000] ^= 1
        assert client.read(url) == data, "asked for again, from the origin"
        assert client.stats().corrupt_pages == 1
        assert http_origin.count("/data") == 2
        stats = client.node_stats()
        assert stats["corrupt_pages"]["dram"] == 1 and stats["quarantined_bytes"] == BLOCK
        with node.node.step() as state:
            assert state.index.dram_slot[entry_of_locked(state, client, url)] != slot
        turn_over = http_origin.put("/turn-over", os.urandom(12 << 20))
        memory[:4] = b"mark"
        client.read(turn_over)
        assert memory[:4] == b"mark", "nothing was put there"


def entry_of_locked(state: object, client: shoal.Client, url: str) -> int:
    return state.index.find(keys.block_key(client._objects.get(url).fingerprint, 0))  # type: ignore[attr-defined]


def test_a_complaint_over_the_wire(node: InProcessNode, client: shoal.Client, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/data", os.urandom(BLOCK))
    client.read(url)
    entry, generation = entry_of(node, client, url)
    call: Callable[..., complain.Reply] = client._session.call
    assert call(complain.KIND, complain.Request(entry, generation), waiting.deadline()).quarantined is False
    with node.node.step():
        node.node.entry_memory(entry)[5] ^= 0x80
    assert call(complain.KIND, complain.Request(entry, generation), waiting.deadline()).quarantined is True


def test_evicted_from_memory_it_comes_back_from_disk(
    in_process_node: MakeInProcess, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    disk = {"directory": f"{tmp_path}/disk", "budget_bytes": "64MiB"}
    node = in_process_node({"dram": {"budget_bytes": "4MiB"}, "nvme": [disk]})
    node.spoil_freed_slots()
    data = os.urandom(10 << 20)
    url = http_origin.put("/data", data)
    step = 1 << 20
    with shoal.connect(node.tcp_address) as client:
        for start in range(0, len(data), step):
            assert client.read(url, start, step) == data[start : start + step]
            waiting.until(lambda: client.node_stats()["disk_queue"] == 0, "written behind")
        waiting.until(lambda: client.inspect([url])[0].disk_bytes == len(data), "all of it is on disk")
        found = client.inspect([url])[0]
        assert found.dram_bytes < len(data) and found.block_count == len(data) // BLOCK
        before = http_origin.count("/data")
        for _ in range(2):
            assert client.read(url) == data
        assert http_origin.count("/data") == before
        assert client.stats().hits["disk"] > 0
        assert client.evict(url) == len(data) // BLOCK
        assert client.inspect([url])[0].block_count == 0
        assert client.read(url) == data
        assert http_origin.count("/data") > before


def no_descriptor() -> int:
    raise OSError(errno.EMFILE, "no descriptor is left")


@pytest.mark.parametrize("available", [lambda: 0, no_descriptor])
def test_memory_that_stops_growing_is_still_used(
    in_process_node: MakeInProcess,
    monkeypatch: pytest.MonkeyPatch,
    http_origin: HttpOrigin,
    available: Callable[[], int],
) -> None:
    node = in_process_node({"dram": {"budget_bytes": "16MiB"}})
    monkeypatch.setattr(dram, "available_memory_bytes", available)
    data = os.urandom(12 << 20)
    url = http_origin.put("/data", data)
    with shoal.connect(node.tcp_address) as client:
        assert client.read(url) == data
        waiting.until(lambda: client.node_stats()["fallbacks"]["dram_budget"] == 1, "said so")
        assert client.read(url) == data
        stats = client.node_stats()
        assert len(stats["segments"]) == 1
        assert client.inspect([url])[0].dram_bytes > 6 << 20, "what there is is full"
        assert client.stats().hits["direct"] == 0

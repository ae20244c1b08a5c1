"""Quotas, times to live, pinned spaces and scarce memory: caps hold, and what cannot be cached is read all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal import errors
from shoal_core import digests, keys, limits
from shoal_core.config import parse
from shoal_node import assembly
from shoal_node.spaces import space_of, tier_classes
from shoal_node.tiers.nvme import NvmeTier, Record
from tests.faults import raw_client
from tests.faults.conftest import Connect
from tests.support import running_node, waiting
from tests.support.http_origin import HttpOrigin
from tests.support.running_node import MakeInProcess

BLOCK = 64 * limits.KIB


def put(origin: HttpOrigin, path: str, blocks: int) -> bytes:
    data = os.urandom(blocks * BLOCK)
    origin.put(path, data)
    return data


def overrides(origin: HttpOrigin, directory: Path, **settings: Any) -> dict[str, Any]:
    """A node with 16 MiB of memory, 32 MiB of disk, and the dataset 'set' over the origin."""
    return {
        "dram": {"budget_bytes": 16 * limits.MIB},
        "nvme": [{"directory": str(directory / "cache"), "budget_bytes": 32 * limits.MIB}],
        "datasets": {"set": {"url": origin.base_url, **settings}},
    }


# Quotas


@pytest.mark.parametrize("eviction", ["s3fifo", "epoch"])
def test_a_quota_is_a_cap(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin, tmp_path: Path, eviction: str
) -> None:
    """In each tier, at every moment, with three readers; and whoever has no quota loses nothing by it."""
    quota = 40 * BLOCK
    node = in_process_node(overrides(http_origin, tmp_path, quota_bytes=quota, eviction=eviction))
    other = put(http_origin, "/other", 60)
    data = {f"/part-{number}": put(http_origin, f"/part-{number}", 30) for number in range(5)}
    watcher = connect(node.address)
    assert watcher.read(http_origin.url("/other")) == other
    over: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with node.node.step() as state:
                number = next(n for n, space in enumerate(state.spaces) if space.name == "set")
                assert state.disk is not None
                used = [tier.slabs.space_used_bytes(number) for tier in (state.dram, state.disk)]
                over.extend(size for size in used if size > quota)

    def read_on(client: shoal.Client) -> int:
        for path, content in data.items():
            assert client.read(f"shoal://set{path}") == content
        return client.stats().hits["direct"]

    with ThreadPoolExecutor(4) as pool:
        watching = pool.submit(watch)
        readers = [pool.submit(read_on, connect(node.address)) for _ in range(3)]
        try:
            for reader in readers:
                reader.result(40)
        finally:
            stop.set()
        watching.result(10)
    assert not over
    stats = watcher.node_stats()
    assert BLOCK < stats["spaces"]["set"]["used_bytes"] <= stats["spaces"]["set"]["quota_bytes"] == quota
    assert watcher.inspect([http_origin.url("/other")])[0].dram_bytes == len(other)


def test_a_quota_that_others_leave_full(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    """All of it is looked at by somebody: reads go to the origin, visibly, and are right."""
    node = in_process_node(overrides(http_origin, tmp_path, quota_bytes=8 * BLOCK))
    held, more = put(http_origin, "/held", 8), put(http_origin, "/more", 5)
    holder, reader = connect(node.address), connect(node.address)
    with holder.view("shoal://set/held") as view:
        assert view.zero_copy
        assert reader.read("shoal://set/more") == more
        assert b"".join(view.parts) == held
        assert reader.stats().hits["direct"] == 5
        assert reader.node_stats()["fallbacks"]["bypass"] == 5
        assert reader.node_stats()["spaces"]["set"]["used_bytes"] == 8 * BLOCK
    del view

    def fits() -> bool:
        before = reader.stats().hits["direct"]
        assert reader.read("shoal://set/more") == more
        return reader.stats().hits["direct"] == before

    waiting.until(fits, "the views have gone, so it is cached after all")


def keeps(client: shoal.Client, quota: int) -> None:
    """At once, but for what is leased: that follows as soon as it was given back."""
    waiting.until(lambda: client.node_stats()["spaces"]["set"]["used_bytes"] <= quota, "it keeps the new quota")


def test_a_quota_is_changed_while_the_node_runs(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    node = in_process_node(overrides(http_origin, tmp_path))
    data = put(http_origin, "/data", 100)
    client = connect(node.address)
    for quota in (None, 80 * BLOCK, 20 * BLOCK):
        client.declare_dataset("set", http_origin.base_url, quota_bytes=quota)
        for _ in range(2):
            assert client.read("shoal://set/data") == data
        if quota is not None:
            keeps(client, quota)
    with pytest.raises(errors.ShoalError, match="quota_bytes"):
        client.declare_dataset("set", http_origin.base_url, quota_bytes=BLOCK - 1)
    with pytest.raises(errors.ShoalError, match="quota_bytes"):
        client.declare_dataset("set", http_origin.base_url, quota_bytes=1 << 50)


# Pinned spaces


def test_a_full_pinned_space(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    """What was first stays for good; the rest is read past the cache, visibly."""
    quota = 30 * BLOCK
    node = in_process_node(overrides(http_origin, tmp_path, eviction="pin", quota_bytes=quota))
    first, second = put(http_origin, "/first", 30), put(http_origin, "/second", 10)
    client = connect(node.address)
    assert client.read("shoal://set/first") == first
    started = time.monotonic()
    for _ in range(3):
        assert client.read("shoal://set/second") == second
    assert time.monotonic() - started < 5, "nobody waits for what does not go away"
    assert client.stats().hits["direct"] == 30 == client.node_stats()["fallbacks"]["bypass"]
    gets = http_origin.count("/first")
    assert connect(node.address).read("shoal://set/first") == first
    assert http_origin.count("/first") == gets
    assert client.evict("shoal://set/first") == 30

    def fits() -> bool:
        before = client.stats().hits["direct"]
        assert client.read("shoal://set/second") == second
        return client.stats().hits["direct"] == before

    waiting.until(fits, "there is room again")


# Times to live


def test_blocks_go_at_the_end_of_their_time(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    """From memory and disk, held grants included; a view that lives keeps its bytes."""
    node = in_process_node(overrides(http_origin, tmp_path, ttl_s=1))
    data, other = put(http_origin, "/data", 10), put(http_origin, "/other", 3)
    client = connect(node.address)
    assert client.read("shoal://set/data") == data
    assert client.read(http_origin.url("/other")) == other
    with client.view("shoal://set/data", 0, 100) as view:
        waiting.until(lambda: client.inspect(["shoal://set/data"])[0].block_count == 0, "all of it has expired")
        assert view.memory == data[:100]
    assert client.inspect([http_origin.url("/other")])[0].block_count == 3, "others have no such time"
    gets = http_origin.count("/data")
    assert connect(node.address).read("shoal://set/data") == data
    assert http_origin.count("/data") > gets


def test_time_goes_on_while_no_node_runs(
    in_process_node: MakeInProcess, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    """Each block's time counts from its own fill, in whatever order recovery finds them."""
    told = parse(running_node.configuration(tmp_path, overrides(http_origin, tmp_path, ttl_s=1000)))
    _, classes = tier_classes(told.slab_bytes, told.fill.block_size_bytes)
    tier = NvmeTier(told.nvme[0].directory, told.nvme[0].budget_bytes, told.slab_bytes, classes)
    uid = space_of(assembly._user(), "set").uid
    now_s = int(time.time())
    ages = [5, 2000, 30, 1500, 0, 999_999, 700]
    for slab, age in enumerate(ages):
        payload = os.urandom(BLOCK)
        tier.assign(slab, len(classes) - 1)
        key = keys.block_key(keys.object_fingerprint(uid, f"{http_origin.base_url}/{slab}", "e", BLOCK, BLOCK), 0)
        checksum = digests.checksum(digests.page_digests(memoryview(payload)))
        tier.write(Record(slab * limits.SLAB_SLOTS_MAX, key, uid, BLOCK, checksum, now_s - age), memoryview(payload))
    tier.close()
    node = in_process_node(overrides(http_origin, tmp_path, ttl_s=1000))
    young = sum(age < 1000 for age in ages)
    waiting.until(
        lambda: node.node.status()["tiers"]["disk"]["blocks"] == young, "the old ones have gone, and only they"
    )


# Scarce memory

POOR = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result:
        print("cannot:", os.strerror(ctypes.get_errno()), flush=True)
        sys.exit(77)
check(libc.unshare(0x20000))
check(libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None))
check(libc.mount(sys.argv[1].encode(), b"/proc/meminfo", None, 0x1000, None))
os.execv(sys.executable, [sys.executable, "-m", "shoal_node", "--config", sys.argv[2]])
"""
"""A node in a mount namespace of its own, where /proc/meminfo is a file of the test's."""


@pytest.fixture
def poor_node(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(socket, file that says how much memory there is) of a node with a budget of 100 MiB."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 8000000 kB\n")
    with running_node.short_directory() as directory:
        config = running_node.configuration(directory, {"dram": {"budget_bytes": 200 * limits.MIB}})
        (directory / "node.json").write_text(json.dumps(config))
        process = subprocess.Popen(
            [sys.executable, "-c", POOR, str(meminfo), str(directory / "node.json")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        with process.stdout:
            try:
                path = config["doors"]["unix"]
                waiting.until(lambda: process.poll() is not None or _answers(path), "the node answers")
                if process.poll() == 77:
                    pytest.skip("a mount namespace, to give a node other memory figures, needs CAP_SYS_ADMIN")
                assert process.poll() is None, process.stdout.read()
                yield path, meminfo
            finally:
                process.kill()
                process.wait()


def _answers(path: str) -> bool:
    try:
        return bool(running_node.ask_status(path))
    except errors.ShoalError:
        return False


def test_memory_that_is_no_longer_there(poor_node: tuple[str, Path], connect: Connect, tmp_path: Path) -> None:
    """The cache stays as large as it is instead of pushing the machine into swapping, and says so."""
    path, meminfo = poor_node
    data = os.urandom(120 * limits.MIB)
    (tmp_path / "data").write_bytes(data)
    client = connect(f"unix:{path}")
    url = f"file://{tmp_path}/data"
    assert client.read(url, 0, BLOCK) == data[:BLOCK]
    before = sum(segment["bytes"] for segment in client.node_stats()["segments"])
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 100000 kB\n")
    for start in range(0, len(data), 16 * limits.MIB):
        assert client.read(url, start, 16 * limits.MIB) == data[start : start + 16 * limits.MIB]
    stats = client.node_stats()
    assert stats["fallbacks"]["dram_budget"] >= 1
    assert sum(segment["bytes"] for segment in stats["segments"]) == before
    dram = stats["tiers"]["dram"]
    assert dram["used_bytes"] > 0.9 * before, "all that there is, is used"
    assert dram["used_bytes"] + dram["index_bytes"] <= dram["budget_bytes"] <= 200 * limits.MIB
    assert client.stats().hits["direct"] == 0


def test_no_memory_at_all_for_the_first_segment(tmp_path: Path) -> None:
    """A budget beyond what the machine has is an error at the start, not a crash in the middle."""
    with running_node.short_directory() as directory:
        config = running_node.configuration(directory, {})
        (directory / "node.json").write_text(json.dumps(config))
        (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
        done = subprocess.run(
            [sys.executable, "-c", POOR, str(tmp_path / "meminfo"), str(directory / "node.json")],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        if done.returncode == 77:
            pytest.skip("a mount namespace, to give a node other memory figures, needs CAP_SYS_ADMIN")
        assert done.returncode == 1
        assert "dram.budget_bytes" in done.stderr and "Traceback" not in done.stderr


def test_a_process_that_may_open_few_files(connect: Connect, tmp_path: Path) -> None:
    """It keeps some for itself: connections beyond are refused, those that are there can still bring new blocks."""
    with running_node.short_directory() as directory:
        config = running_node.configuration(directory, {})
        (directory / "node.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", "shoal_node", "--config", str(directory / "node.json")]
        process = subprocess.Popen(["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *command], stderr=subprocess.DEVNULL)
        path = config["doors"]["unix"]
        try:
            waiting.until(lambda: _answers(path), "the node answers")
            client = connect(f"unix:{path}")
            for number in range(2):
                (tmp_path / f"{number}").write_bytes(b"data")
            assert client.read(f"file://{tmp_path}/0") == b"data"
            idle = [raw_client.RawConnection(f"unix:{path}") for _ in range(100)]
            try:
                assert client.read(f"file://{tmp_path}/1") == b"data"
                assert client.stats().hits["origin"] == 2 and client.stats().hits["direct"] == 0
            finally:
                for raw in idle:
                    raw.close()
            waiting.until(lambda: _answers(path), "others are let in again")
        finally:
            process.kill()
            process.wait()

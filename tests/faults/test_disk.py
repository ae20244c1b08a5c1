"""A disk tier that fails, is full or was damaged: readers get the right bytes, and the numbers say what happened."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal_core import limits
from shoal_core.config import parse
from tests.faults.conftest import Connect
from tests.faults.faulty_disk import FaultyIo, NodeOverDisk
from tests.support import running_node, waiting
from tests.support.http_origin import HttpOrigin
from tests.support.running_node import InProcessNode, MakeInProcess, MakeProcess

BLOCK = 64 * limits.KIB
DRAM = 8 * limits.MIB
BLOCKS = 300
"""Of the object that the tests read: more than twice what DRAM holds."""


def overrides(directory: Path, **more: Any) -> dict[str, Any]:
    nvme = [{"directory": str(directory), "budget_bytes": 64 * limits.MIB}]
    return {"dram": {"budget_bytes": DRAM}, "nvme": nvme, **more}


@pytest.fixture
def data() -> bytes:
    return random.Random(3).randbytes(BLOCKS * BLOCK - 5000)


@pytest.fixture
def url(http_origin: HttpOrigin, data: bytes) -> str:
    return http_origin.put("/data", data)


@pytest.fixture
def faulty() -> Iterator[Callable[[Path], NodeOverDisk]]:
    """faulty(directory) -> a node over a disk that can be made to fail, by its `io`."""
    with contextlib.ExitStack() as stack:

        def make(directory: Path) -> NodeOverDisk:
            place = stack.enter_context(running_node.short_directory())
            node = NodeOverDisk(parse(running_node.configuration(place, overrides(directory))), FaultyIo())
            node.start()
            stack.callback(node.stop)
            stack.callback(node.check)
            return node

        yield make


def written(node: InProcessNode) -> None:
    """Everything that was published is on disk."""
    waiting.until(
        lambda: (status := node.node.status())["disk_queue"] == 0 and status["tiers"]["disk"]["blocks"] == BLOCKS,
        "all is on disk",
    )


def read_slowly(client: shoal.Client, url: str, data: bytes) -> None:
    """The whole object, right, in pieces, each behind a full turn of the disk queue: nothing is skipped."""
    for start in range(0, len(data), 16 * BLOCK):
        assert client.read(url, start, 16 * BLOCK) == data[start : start + 16 * BLOCK]
        waiting.until(lambda: client.node_stats()["disk_queue"] == 0, "the disk keeps up")


def brought(stats: dict[str, Any]) -> int:
    """Blocks that came from the origin. What a reader gets in time by reading ahead, it takes for a hit in memory."""
    return stats["fills"].get("http", {}).get("ok", 0)


# The disk fails while the node runs


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_cannot_be_written(
    faulty: Callable[[Path], NodeOverDisk], connect: Connect, tmp_path: Path, url: str, data: bytes, number: int
) -> None:
    node = faulty(tmp_path / "cache")
    client = connect(node.address)
    assert isinstance(node.io, FaultyIo)
    node.io.fail("write", "allocate", number=number)
    for _ in range(3):
        assert client.read(url) == data
    stats = client.node_stats()
    assert stats["disk_errors"]["write"] >= 8 and stats["disk_failed"] is True
    assert stats["tiers"]["disk"]["blocks"] == 0
    waiting.until(lambda: client.node_stats()["disk_queue"] == 0, "nothing is kept for a disk that takes no more")
    assert client.stats().hits["direct"] == 0
    client.evict(url)
    assert client.read(url, 0, 5 * BLOCK) == data[: 5 * BLOCK]
    waiting.until(lambda: client.node_stats()["disk_queue"] == 0, "nor later")


def test_a_disk_that_recovers_in_time_is_used_on(
    faulty: Callable[[Path], NodeOverDisk], connect: Connect, tmp_path: Path, url: str, data: bytes
) -> None:
    node = faulty(tmp_path / "cache")
    client = connect(node.address)
    assert isinstance(node.io, FaultyIo)
    read_slowly(client, url, data[: 32 * BLOCK])
    waiting.until(lambda: client.node_stats()["tiers"]["disk"]["blocks"] == 32, "all is on disk")
    node.io.fail("write")
    assert client.read(url, 32 * BLOCK, 4 * BLOCK) == data[32 * BLOCK : 36 * BLOCK]
    waiting.until(lambda: client.node_stats()["disk_errors"]["write"] == 4, "four writes failed")
    node.io.fail()
    read_slowly(client, url, data)
    stats = client.node_stats()
    assert stats["disk_failed"] is False, stats["disk_errors"]
    waiting.until(lambda: client.node_stats()["tiers"]["disk"]["blocks"] > BLOCKS // 2, "later blocks are on disk")


def test_a_disk_that_cannot_be_read(
    faulty: Callable[[Path], NodeOverDisk], connect: Connect, http_origin: HttpOrigin, tmp_path: Path,
    url: str, data: bytes,
) -> None:  # fmt: skip
    """The origin has the bytes; who reads does not notice but by the time it takes."""
    node = faulty(tmp_path / "cache")
    client = connect(node.address)
    assert isinstance(node.io, FaultyIo)
    read_slowly(client, url, data)
    written(node)
    client.close()
    client = connect(node.address)
    node.io.fail("read")
    gets = http_origin.count("/data")
    assert client.read(url) == data
    stats = client.node_stats()
    assert stats["disk_errors"]["read"] > 100 and client.stats().hits["disk"] == 0
    assert http_origin.count("/data") > gets
    assert client.stats().hits["direct"] == 0
    node.io.fail()
    assert client.read(url) == data


def test_a_disk_that_gives_wrong_bytes(
    faulty: Callable[[Path], NodeOverDisk], connect: Connect, tmp_path: Path, url: str, data: bytes
) -> None:
    node = faulty(tmp_path / "cache")
    client = connect(node.address)
    assert isinstance(node.io, FaultyIo)
    read_slowly(client, url, data)
    written(node)
    client.close()
    client = connect(node.address)
    node.io.flip_bits = True
    assert client.read(url) == data
    assert client.node_stats()["corrupt_pages"]["disk"] > 100 and client.stats().hits["disk"] == 0
    node.io.flip_bits = False
    read_slowly(client, url, data)
    assert client.read(url) == data


def test_a_directory_that_is_removed_under_a_running_node(
    in_process_node: MakeInProcess, connect: Connect, tmp_path: Path, url: str, data: bytes
) -> None:
    node = in_process_node(overrides(tmp_path / "cache"))
    client = connect(node.address)
    assert client.read(url) == data
    shutil.rmtree(tmp_path / "cache")
    for _ in range(2):
        assert client.read(url) == data
    node.stop()


def test_a_segment_file_that_is_cut_under_a_running_node(
    in_process_node: MakeInProcess, connect: Connect, tmp_path: Path, url: str, data: bytes
) -> None:
    node = in_process_node(overrides(tmp_path / "cache"))
    client = connect(node.address)
    read_slowly(client, url, data)
    written(node)
    client.close()
    os.truncate(tmp_path / "cache" / "segment-0000", 0)
    client = connect(node.address)
    for _ in range(2):
        assert client.read(url) == data
    stats = client.node_stats()
    # Errors beyond the end; holes where it was written to again.
    assert stats["disk_errors"]["read"] + stats["corrupt_pages"]["disk"] > 100
    assert client.stats().hits["direct"] == 0


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB beside what somebody else has there; it could hold the whole tier."""
    place = tmp_path / "small"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=80m,mode=700", "tmpfs", str(place)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("mounting a file system of limited size needs root and CAP_SYS_ADMIN")
    try:
        with (place / "others").open("wb") as others:
            os.posix_fallocate(others.fileno(), 0, 76 * limits.MIB)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(
    node_process: MakeProcess, connect: Connect, small_disk: Path, url: str, data: bytes, http_origin: HttpOrigin
) -> None:
    """What is on it is used; the rest does without. After a restart too, and when there is room again."""
    node = node_process(overrides(small_disk / "cache"))
    client = connect(node.address)
    for _ in range(2):
        assert client.read(url) == data
    stats = client.node_stats()
    assert stats["disk_errors"]["write"] >= 8 and stats["disk_failed"] is True
    assert 10 < stats["tiers"]["disk"]["blocks"] < 64
    kept = stats["tiers"]["disk"]["blocks"]
    assert shutil.disk_usage(small_disk).free < limits.MIB
    client.close()
    assert node.stop() == 0
    node.start()
    gets = http_origin.count("/data")
    client = connect(node.address)
    assert client.read(url) == data
    assert brought(client.node_stats()) == BLOCKS - kept and http_origin.count("/data") > gets
    client.close()
    assert node.stop() == 0
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    node.start()
    client = connect(node.address)
    read_slowly(client, url, data)
    stats = client.node_stats()
    assert stats["disk_failed"] is False and stats["disk_errors"]["write"] == 0
    waiting.until(lambda: client.node_stats()["tiers"]["disk"]["blocks"] == BLOCKS, "all of it is on disk now")


# What lies on the disk was damaged while no node ran


@pytest.fixture
def filled(in_process_node: MakeInProcess, connect: Connect, tmp_path: Path, url: str, data: bytes) -> Path:
    """The directory of a node that has ended, with every block of the object in it."""
    node = in_process_node(overrides(tmp_path / "cache"))
    client = connect(node.address)
    read_slowly(client, url, data)
    written(node)
    client.close()
    node.stop()
    return tmp_path / "cache"


Restarted = Callable[[], tuple[shoal.Client, dict[str, Any]]]


@pytest.fixture
def restarted(
    in_process_node: MakeInProcess, connect: Connect, filled: Path, url: str, data: bytes, http_origin: HttpOrigin
) -> Restarted:
    """restarted() -> (client, node's numbers) after the whole object was read, right, through a new node."""

    def read_again() -> tuple[shoal.Client, dict[str, Any]]:
        http_origin.reset_counts()
        client = connect(in_process_node(overrides(filled)).address)
        assert client.read(url) == data
        stats = client.node_stats()
        assert client.stats().hits["direct"] == 0
        return client, stats

    return read_again


def test_an_undamaged_disk_answers_everything(restarted: Restarted, http_origin: HttpOrigin) -> None:
    client, stats = restarted()
    assert brought(stats) == 0 and http_origin.count("/data") == 0 and client.stats().hits["disk"] > 0
    assert stats["corrupt_pages"]["disk"] == 0 and stats["disk_errors"]["read"] == 0


def test_flipped_bits_in_payloads(filled: Path, restarted: Restarted, data: bytes) -> None:
    """Each damaged block is a miss, each other one a hit."""
    chance = random.Random(7)
    damaged = chance.sample(range(BLOCKS), 20)
    segment = filled / "segment-0000"
    content = bytearray(segment.read_bytes())
    for block in damaged:
        payload = data[block * BLOCK : (block + 1) * BLOCK]
        place = content.find(payload)
        assert place >= 0
        content[place + chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
    segment.write_bytes(content)
    _, stats = restarted()
    assert brought(stats) == stats["corrupt_pages"]["disk"] == 20


def test_flipped_bits_in_the_entry_table(filled: Path, restarted: Restarted) -> None:
    """A damaged record is no record. Its block is brought again."""
    table = filled / "entries-0000"
    content = bytearray(table.read_bytes())
    records = [place for place in range(0, len(content), 64) if any(content[place : place + 64])]
    headers = [place for place in records if content[place : place + 8] == b"SHOALSLB"]
    chance = random.Random(9)
    damaged = chance.sample([place for place in records if place not in headers], 25)
    for place in damaged:
        content[place + chance.randrange(64)] ^= 1 << chance.randrange(8)
    table.write_bytes(content)
    _, stats = restarted()
    assert brought(stats) == 25 and stats["corrupt_pages"]["disk"] == 0


@pytest.mark.parametrize("name", ["segment-0000", "entries-0000"])
@pytest.mark.parametrize("part", [0.0, 0.85])
def test_a_file_that_was_cut(filled: Path, restarted: Restarted, name: str, part: float) -> None:
    size = (filled / name).stat().st_size
    os.truncate(filled / name, int(size * part))
    _, stats = restarted()
    assert brought(stats) == BLOCKS if part == 0 else 0 < brought(stats) < BLOCKS
    assert stats["disk_failed"] is False and stats["corrupt_pages"]["disk"] == 0


@pytest.mark.parametrize("name", ["segment-0000", "entries-0000", "shoal.json"])
def test_a_file_full_of_something_else(filled: Path, restarted: Restarted, name: str) -> None:
    size = (filled / name).stat().st_size
    (filled / name).write_bytes(os.urandom(size))
    _, stats = restarted()
    assert brought(stats) == BLOCKS
    assert stats["corrupt_pages"]["disk"] == (BLOCKS if name == "segment-0000" else 0)


@pytest.mark.parametrize("name", ["segment-0000", "entries-0000", "shoal.json", "lock"])
def test_a_file_that_is_missing(filled: Path, restarted: Restarted, name: str) -> None:
    (filled / name).unlink()
    _, stats = restarted()
    assert brought(stats) == (0 if name == "lock" else BLOCKS)


def test_tables_and_payloads_that_do_not_belong_together(filled: Path, restarted: Restarted) -> None:
    """As after a restore from a backup of the one and not of the other: wrong bytes are never served."""
    segment = filled / "segment-0000"
    content = segment.read_bytes()
    segment.write_bytes(content[BLOCK:] + content[:BLOCK])
    _, stats = restarted()
    assert brought(stats) == stats["corrupt_pages"]["disk"] > BLOCKS * 0.9


def test_blocks_that_are_evicted_while_others_read_them(
    in_process_node: MakeInProcess, connect: Connect, tmp_path: Path
) -> None:
    """Objects of many sizes, so that slabs change hands under reads that wait for them."""
    chance = random.Random(5)
    objects: dict[str, bytes] = {}
    for number in range(12):
        data = chance.randbytes(chance.choice([700, 9000, 30_000, BLOCK, 5 * BLOCK + 100, 30 * BLOCK + 5000]))
        (tmp_path / f"object-{number}").write_bytes(data)
        objects[f"file://{tmp_path}/object-{number}"] = data
    nvme = [{"directory": str(tmp_path / "cache"), "budget_bytes": 6 * limits.MIB}]
    node = in_process_node({"dram": {"budget_bytes": 6 * limits.MIB}, "nvme": nvme})

    def read_on(seed: int) -> None:
        chance, client = random.Random(seed), connect(node.address)
        for _ in range(150):
            url = chance.choice(list(objects))
            if chance.random() < 0.3:
                client.evict(url)
            else:
                assert client.read(url) == objects[url]
        assert client.stats().hits["direct"] == 0

    with ThreadPoolExecutor(4) as pool:
        for reading in [pool.submit(read_on, seed) for seed in range(4)]:
            reading.result(50)
    stats = node.node.status()
    assert stats["corrupt_pages"] == {"dram": 0, "disk": 0, "origin": 0}
    assert set(stats["fills"]["file"]) == {"ok"}, "nothing went wrong on the way"

"""Leases when a client dies, ignores what it is asked, or lies: lent memory never changes, and others are served."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal_core import limits
from shoal_core.verbs import get, release, revoke
from tests.faults import raw_client
from tests.faults.conftest import Connect
from tests.support import waiting
from tests.support.running_node import InProcessNode, MakeInProcess

BLOCK = 64 * limits.KIB
CACHE = 8 * limits.MIB
SMALL = {"dram": {"budget_bytes": CACHE}}


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node(SMALL)


def make(directory: Path, name: str, blocks: int) -> tuple[str, bytes]:
    """An object of so many blocks: (URL, bytes). Made once."""
    if not (directory / name).exists():
        (directory / name).write_bytes(os.urandom(blocks * BLOCK))
    return f"file://{directory / name}", (directory / name).read_bytes()


def turn_over(connect: Connect, node: InProcessNode, directory: Path, times: int = 2) -> dict[str, Any]:
    """Another client reads several times what the cache holds, all bytes right; the node's numbers after it."""
    url, data = make(directory, "turn-over", CACHE // BLOCK)
    with connect(node.address) as client:
        for _ in range(times):
            for start in range(0, len(data), CACHE // 8):
                assert client.read(url, start, CACHE // 8) == data[start : start + CACHE // 8]
        return client.node_stats()


HOLDER = """
import os, sys, shoal
client = shoal.connect(sys.argv[1])
views = [client.view(sys.argv[2], start, 65536) for start in range(0, 40 * 65536, 65536)]
assert all(view.zero_copy for view in views)
print("holding", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(address: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds live views of 40 blocks."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, address, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        try:
            assert process.stdout.readline() == "holding\n"
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_killed_client_gives_back_everything(node: InProcessNode, connect: Connect, tmp_path: Path) -> None:
    url, _ = make(tmp_path, "held", 40)
    with holder(node.address, url) as process:
        now = node.node.status()
        assert now["leases"] == 40 and now["clients"] == 1
        assert [client["process"] for client in now["processes"].values()] == [f"-c:{process.pid}"]
        stats = turn_over(connect, node, tmp_path)
        assert stats["leases"] >= 40 and stats["revokes"]["busy"] >= 1, "in use, so it keeps them"
        process.send_signal(signal.SIGKILL)
        process.wait()
        waiting.until(lambda: node.node.status()["leases"] == 0, "the leases ended with their client")
        waiting.until(lambda: node.node.status()["clients"] == 0, "its other connections are noticed too")
    stats = node.node.status()
    assert stats["clients"] == 0 and stats["processes"] == {} and stats["leased_bytes"] == 0
    before = stats["fallbacks"]["bypass"]
    assert turn_over(connect, node, tmp_path)["fallbacks"]["bypass"] == before, "its slots are used again"


def test_a_client_that_ignores_what_it_is_asked(node: InProcessNode, connect: Connect, tmp_path: Path) -> None:
    """It may hold its three quarters of the cache for ever; not a byte of them changes, the others make do."""
    url, data = make(tmp_path, "held", CACHE // BLOCK)
    with raw_client.reader(node.address) as (requests, events):
        found = requests.resolve(url)
        granted: list[tuple[int, get.Grant]] = []
        for block in range(found.size // BLOCK):
            (answer,) = requests.get(found, range(block, block + 1))
            if not isinstance(answer, get.Grant):
                break
            granted.append((block, answer))
        assert CACHE * 0.7 < len(granted) * BLOCK <= CACHE * 0.75
        assert isinstance(answer, get.Inline), "beyond its limit it gets copies"
        maps = {number: mapped(requests, number) for number in {answer.segment for _, answer in granted}}
        try:
            stats = turn_over(connect, node, tmp_path)
            assert stats["leases"] >= len(granted)
            header, body = events.reply()
            assert header.kind == revoke.KIND and len(body) > 1, "it was asked"
            for block, answer in granted:
                lent = maps[answer.segment][answer.offset : answer.offset + answer.length]
                assert lent == data[block * BLOCK : (block + 1) * BLOCK]
        finally:
            for segment in maps.values():
                segment.close()
    waiting.until(lambda: node.node.status()["leases"] == 0, "the leases ended with their client")
    now = node.node.status()
    assert now["revokes"]["gone"] >= 1, "what it was asked for went with it"
    before = now["fallbacks"]["bypass"]
    assert turn_over(connect, node, tmp_path)["fallbacks"]["bypass"] == before


def test_a_client_that_answers_nonsense_when_asked(node: InProcessNode, connect: Connect, tmp_path: Path) -> None:
    """It gives back what it never had, and what others hold: nothing of that counts."""
    url, data = make(tmp_path, "held", 20)
    mine, mine_data = make(tmp_path, "mine", 10)
    client = connect(node.address)
    views = [client.view(mine, start, BLOCK) for start in range(0, 10 * BLOCK, BLOCK)]
    with raw_client.reader(node.address) as (requests, events):
        answers = requests.get(requests.resolve(url), range(20))
        with node.node.step() as state:
            every = [
                (entry, client.entries.get(entry, 1))
                for client in state.leases.clients.values()
                for entry in range(100)
            ]
        others = [lease for lease in every if lease[0] not in {answer.entry for answer in answers}]
        assert requests.call(release.KIND, release.Request(others * 3, [])).released == 0
        events.socket.sendall(_revoke_reply(others, every[:5]) + _revoke_reply([(1 << 40, 1)], []))
        assert node.node.status()["leases"] == 30
        turn_over(connect, node, tmp_path)
        assert [bytes(view.memory) for view in views] == [
            mine_data[start : start + BLOCK] for start in range(0, 10 * BLOCK, BLOCK)
        ]
        assert requests.call(release.KIND, release.Request([(a.entry, a.lease) for a in answers], [])).released
    node.check()
    assert client.read(url) == data


def _revoke_reply(released: list[tuple[int, int]], busy: list[tuple[int, int]]) -> bytes:
    from shoal_core import frame, verbs

    return frame.encode(revoke.KIND | frame.REPLY, 0, verbs.encode(revoke.Reply(released, busy)))


def test_views_do_not_change_while_the_cache_turns_over(node: InProcessNode, connect: Connect, tmp_path: Path) -> None:
    """Not when their client was closed either; their memory is free when the last slice has gone."""
    url, data = make(tmp_path, "held", 30)
    client = connect(node.address)
    views = [client.view(url, start, BLOCK) for start in range(0, 30 * BLOCK, BLOCK)]
    slices = [view.memory[100:200] for view in views]
    for view in views[:10]:
        view.close()
    client.close()
    stats = turn_over(connect, node, tmp_path)
    assert stats["leases"] >= 30
    for number, (view, part) in enumerate(zip(views, slices, strict=True)):
        block = data[number * BLOCK : (number + 1) * BLOCK]
        assert part == block[100:200]
        assert number < 10 or view.memory == block
    del view, views, part, slices
    gc.collect()
    waiting.until(lambda: node.node.status()["leases"] == 0, "the leases ended with the last slice")


@pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_client_that_was_forgotten_gives_back_its_leases(node: InProcessNode, tmp_path: Path) -> None:
    url, data = make(tmp_path, "held", 5)
    client = shoal.connect(node.address)
    assert client.read(url) == data
    assert node.node.status()["leases"] == 5
    del client
    gc.collect()
    waiting.until(lambda: not node.node.status()["leases"], "nobody looks at them any more")


def test_batches_over_more_than_may_be_leased_are_granted(
    in_process_node: MakeInProcess, connect: Connect, tmp_path: Path
) -> None:
    """What was looked at once goes back for what comes, also for the requests of one batch that are under way."""
    node = in_process_node({"dram": {"budget_bytes": 96 << 20}, "leases": {"client_bytes_max": 400 * BLOCK}})
    url, data = make(tmp_path, "many", 900)
    client = connect(node.address)
    for _ in range(3):
        for first in range(0, 900, 300):  # five requests each
            ranges = [(url, block * BLOCK, 100) for block in range(first, first + 300)]
            assert client.read_many(ranges) == [data[start : start + 100] for _, start, _ in ranges]
    assert client.node_stats()["fallbacks"].get("lease_limit", 0) == 0


def test_beyond_the_lease_limit_reads_are_copies(
    in_process_node: MakeInProcess, connect: Connect, tmp_path: Path
) -> None:
    node = in_process_node({**SMALL, "leases": {"client_bytes_max": 4 * BLOCK}})
    url, data = make(tmp_path, "many", 12)
    client = connect(node.address)
    views = [client.view(url, start, BLOCK) for start in range(0, 12 * BLOCK, BLOCK)]
    assert [view.zero_copy for view in views] == [True] * 4 + [False] * 8
    assert b"".join(bytes(view.memory) for view in views) == data
    assert client.node_stats()["leased_bytes"] == 4 * BLOCK
    assert client.node_stats()["fallbacks"]["lease_limit"] == 8
    assert client.stats().hits["origin"] == 12
    for view in views:
        view.close()
    del view, views
    assert client.read(url) == data
    assert client.node_stats()["leased_bytes"] <= 4 * BLOCK


def test_no_leases_at_all(in_process_node: MakeInProcess, connect: Connect, tmp_path: Path) -> None:
    client = connect(in_process_node({**SMALL, "leases": {"client_bytes_max": 0}}).address)
    url, data = make(tmp_path, "many", 12)
    for _ in range(2):
        assert client.read(url) == data
    assert client.node_stats()["leases"] == 0
    assert client.stats().hits["unix"] == 12 and client.stats().hits["shared memory"] == 0


# The descriptor that a client is given


def mapped(requests: raw_client.RawConnection, segment: int) -> mmap.mmap:
    descriptor, size = requests.map(segment)
    return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)


@pytest.fixture
def segment(node: InProcessNode, tmp_path: Path) -> Iterator[tuple[int, int, get.Grant, bytes]]:
    """(descriptor, size, a grant in it, the bytes that are granted) as a client gets them."""
    url, data = make(tmp_path, "lent", 1)
    with raw_client.reader(node.address) as (requests, _):
        (grant,) = requests.get(requests.resolve(url), range(1))
        descriptor, size = requests.map(grant.segment)
        yield descriptor, size, grant, data


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """What Python's posix_fallocate cannot do: punch holes, zero, collapse."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length))
    if libc.fallocate(*arguments):
        raise OSError(ctypes.get_errno(), "fallocate")


def write_through_map(descriptor: int, size: int) -> None:
    with mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[0] = 1


def make_map_writable(descriptor: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    try:
        if libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
    finally:
        libc.munmap(address, size)


def reopened(descriptor: int, flags: int) -> None:
    again = os.open(f"/proc/self/fd/{descriptor}", flags)
    try:
        os.pwrite(again, b"x", 0)
    finally:
        os.close(again)


KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
ATTEMPTS = {
    "truncate to nothing": lambda d, size: os.ftruncate(d, 0),
    "shrink by a page": lambda d, size: os.ftruncate(d, size - 4096),
    "grow": lambda d, size: os.ftruncate(d, size + 4096),
    "allocate beyond the end": lambda d, size: os.posix_fallocate(d, size, 4096),
    "write": lambda d, size: os.pwrite(d, b"x", 0),
    "write at the end": lambda d, size: os.pwrite(d, b"x", size),
    "punch a hole": lambda d, size: fallocate(d, PUNCH_HOLE | KEEP_SIZE, 0, 4096),
    "zero a range": lambda d, size: fallocate(d, ZERO_RANGE, 0, 4096),
    "map writable": write_through_map,
    "make a map writable": make_map_writable,
    "open again for writing": lambda d, size: reopened(d, os.O_RDWR),
    "open again and truncate": lambda d, size: reopened(d, os.O_RDWR | os.O_TRUNC),
    "take a seal off": lambda d, size: fcntl.fcntl(d, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_client_cannot_harm_the_memory_it_was_lent(
    attempt: str, segment: tuple[int, int, get.Grant, bytes], node: InProcessNode, connect: Connect, tmp_path: Path
) -> None:
    descriptor, size, grant, data = segment
    with pytest.raises(OSError) as caught:
        ATTEMPTS[attempt](descriptor, size)
    assert caught.value.errno in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.EFBIG), caught.value
    assert os.fstat(descriptor).st_size == size
    with mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        assert memory[grant.offset : grant.offset + grant.length] == data
    url, more = make(tmp_path, "more", 3)
    assert connect(node.address).read(url) == more


def test_a_private_map_changes_nobodys_bytes_but_ones_own(
    segment: tuple[int, int, get.Grant, bytes], node: InProcessNode, connect: Connect, tmp_path: Path
) -> None:
    descriptor, size, grant, data = segment
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[grant.offset : grant.offset + grant.length] = bytes(grant.length)
        assert connect(node.address).read(f"file://{tmp_path / 'lent'}") == data

"""What does a warm read of a 4 MiB block over shared memory cost?

A zero-copy read under a held grant is compared with a bound of 5 us; a first one, whose grant must be asked for, with
40 us, and with the round trip of 64-byte messages between two processes on a Unix socket, because the second of them
has to be woken by the kernel. Copying out is compared with the same copy by hand: same mapped segment, same
destination, with slice assignment and with memmove, whichever is faster. Both sides go round 256 MiB, beyond any cache.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import statistics
import time
from pathlib import Path

import shoal
from shoal_bench import bare_peers, pairs, places
from shoal_bench.places import BLOCK_BYTES
from shoal_bench.report import Report
from shoal_core.limits import MIB

BLOCK_COUNT = 64
_OFFSETS = [number * BLOCK_BYTES for number in range(BLOCK_COUNT)]


def run(report: Report) -> None:
    """Rows for views and for copies."""
    with places.directory() as place, places.node(place, 512 * MIB) as node:
        url = places.write_object(place / "objects" / "large", BLOCK_COUNT * BLOCK_BYTES)
        with shoal.connect(node.unix) as client:
            client.read(url)
            _views(report, client, url)
            _first_views(report, node.unix, url, place)
            _copies(report, client, url)


def _views(report: Report, client: shoal.Client, url: str) -> None:
    def view() -> None:
        for offset in _OFFSETS:
            with client.view(url, offset, BLOCK_BYTES) as found:
                found.memory  # noqa: B018

    side = pairs.timed(view, BLOCK_COUNT)
    seconds = [side() for _ in range(report.rounds(200))]
    report.row(
        "shared memory: zero-copy view under a held grant", statistics.median(seconds) * 1e6, None, "us", at_most=5.0
    )


def _first_views(report: Report, address: str, url: str, place: Path) -> None:
    """Views whose grant has to be asked for, and nothing else.

    A client that goes through an object is granted the next blocks unasked, so each sample is a client of its own,
    connected and with the segments mapped, that jumps to one block it was never near. What it held is looked at before
    each: a sample that was held already would be the other row.
    """
    path = str(place / "echo.sock")
    message = bytearray(bare_peers.MESSAGE_BYTES)
    ours: list[float] = []
    trips: list[float] = []
    following: list[float] = []
    with places.peer("echo", path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(path)

        def trip() -> None:
            peer.sendall(message)
            peer.recv_into(message, len(message), socket.MSG_WAITALL)

        for number in range(report.rounds(600)):
            with shoal.connect(address) as client:
                info = client.info(url)
                # Opens the request channel and maps the segment of the block that is measured, by its neighbour.
                block = 2 + number * 7 % (BLOCK_COUNT - 4)
                client.view(url, (block + 1) * BLOCK_BYTES, BLOCK_BYTES).close()
                if (info.fingerprint, block) in client._grants.by_key:  # pyright: ignore[reportPrivateUsage]
                    raise RuntimeError(f"block {block} is held already: this would not be a first view")
                ours.append(_seconds(client, url, block))
                begin = time.perf_counter()
                trip()
                trips.append(time.perf_counter() - begin)
        for _ in range(report.rounds(20)):
            with shoal.connect(address) as client:
                client.view(url, 0, BLOCK_BYTES).close()
                following += [_seconds(client, url, block) for block in range(1, BLOCK_COUNT)]
    report.row(
        "shared memory: first zero-copy view, grant not held",
        statistics.median(ours) * 1e6,
        statistics.median(trips) * 1e6,
        "us",
        reference_name="a bare Unix-socket round trip",
        at_most=40.0,
    )
    report.row(
        "shared memory: mean view, going through an object for the first time",
        statistics.fmean(following) * 1e6, None, "us",
    )  # fmt: skip


def _seconds(client: shoal.Client, url: str, block: int) -> float:
    begin = time.perf_counter()
    with client.view(url, block * BLOCK_BYTES, BLOCK_BYTES) as found:
        found.memory  # noqa: B018
    return time.perf_counter() - begin


def _copies(report: Report, client: shoal.Client, url: str) -> None:
    held = [client.view(url, offset, BLOCK_BYTES) for offset in _OFFSETS]
    sources = [view.memory for view in held]
    addresses = [_address(source) for source in sources]
    target = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    target[:] = bytes(BLOCK_BYTES)
    target_address = ctypes.addressof(ctypes.c_char.from_buffer(target))

    def ours() -> None:
        for offset in _OFFSETS:
            client.read_into(url, target, offset)

    def assigned() -> None:
        for source in sources:
            target[:] = source

    def moved() -> None:
        for address in addresses:
            ctypes.memmove(target_address, address, BLOCK_BYTES)

    def read() -> None:
        for offset in _OFFSETS:
            client.read(url, offset, BLOCK_BYTES)

    def copied() -> None:
        for source in sources:
            bytes(source)

    sides = [pairs.timed(work, BLOCK_COUNT * BLOCK_BYTES) for work in (ours, assigned, moved)]
    pair, fastest = pairs.best_of(sides[0], sides[1:], report.rounds(25))
    name = ("slice assignment", "memmove")[fastest]
    gigabytes = 1e-9
    report.row(
        "shared memory: read_into a preallocated buffer", gigabytes / pair.ours_s, gigabytes / pair.reference_s, "GB/s",
        ratio=pair.speed, reference_name=name, at_least=0.9,
    )  # fmt: skip
    ours_side, reference = (pairs.timed(work, BLOCK_COUNT * BLOCK_BYTES) for work in (read, copied))
    pair = pairs.compare(ours_side, reference, report.rounds(15))
    report.row(
        "shared memory: read, memory of one's own", gigabytes / pair.ours_s, gigabytes / pair.reference_s, "GB/s",
        ratio=pair.speed, reference_name="bytes(view)",
    )  # fmt: skip


def _address(source: memoryview) -> int:
    from shoal_transport.buffers import address_of

    return address_of(source)

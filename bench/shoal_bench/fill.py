"""How close does a cold read through the node come to obstore alone?

A real S3 server on loopback (versitygw, as the tests build it) holds one object. Ours is a client's read_into of it
after an evict, so every block is filled from the origin. The reference is obstore in this process: the same ranges, as
many at once, with If-Match, and each copied to its place in the result.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import obstore

import shoal
from shoal_bench import pairs, places, s3
from shoal_bench.places import BLOCK_BYTES
from shoal_bench.report import Report
from shoal_core.limits import MIB

BLOCK_COUNT = 32
CONCURRENCY = 16
"""The node's default."""


def run(report: Report) -> None:
    """One row over shared memory, one over TCP."""
    if (s3_server := s3.support(report, "fill from local S3")) is None:
        return
    with places.directory() as place, s3_server.start(place) as server:
        source = places.write_object(place / "content", BLOCK_COUNT * BLOCK_BYTES)
        url = server.put("bench", "cold", Path(source.removeprefix("file://")).read_bytes())
        with places.node(place, 512 * MIB, origins={"s3://bench": server.options}) as node:
            for address, door in ((node.unix, "shared memory"), (node.tcp, "TCP")):
                with shoal.connect(address) as client:
                    _row(report, client, door, url, server.store("bench"))


def _row(report: Report, client: shoal.Client, door: str, url: str, store: Any) -> None:
    size = BLOCK_COUNT * BLOCK_BYTES
    target, beside = memoryview(bytearray(size)), memoryview(bytearray(size))
    etag = client.info(url).etag

    def ours() -> float:
        client.evict(url)
        client.info(url)
        return pairs.timed(lambda: client.read_into(url, target))()

    reference = pairs.timed(lambda: asyncio.run(_fetch(store, etag, beside)))
    pair = pairs.compare(ours, reference, report.rounds(16))
    assert target == beside
    gigabytes = size / 1e9
    report.row(
        f"fill from local S3, 4 MiB blocks, read_into over {door}",
        gigabytes / pair.ours_s, gigabytes / pair.reference_s, "GB/s",
        ratio=pair.speed, reference_name=f"obstore, {CONCURRENCY} at once", at_least=0.9,
    )  # fmt: skip


async def _fetch(store: Any, etag: str, target: memoryview) -> None:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(number: int) -> None:
        start, end = number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES
        async with slots:
            result = await obstore.get_async(store, "cold", options={"range": (start, end), "if_match": etag})
            target[start:end] = memoryview(await result.bytes_async())

    await asyncio.gather(*(one(number) for number in range(BLOCK_COUNT)))

"""One process of readers: a thread and a client of its own for each, reading and comparing until the time is up.

Each read is drawn at random: a batch of small ranges, a whole block, or a view of a piece. All bytes are compared with
what the origin has, which follows from object and offset (see counting_origin). What goes wrong is written down and the
reader goes on. Nothing here grows with time: latencies are histograms, of errors the first few are kept.

usage: python -m tests.soak.readers    a job as JSON on stdin; `ready` on stdout when all are connected, then the answer
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import traceback
from collections import Counter
from typing import Any

import shoal
from shoal_bench import counting_origin
from tests.soak.latencies import Latencies

ERRORS_KEPT = 5
BATCH = 32
SMALL_BYTES_MAX = 16 << 10
VIEW_BYTES_MAX = 1 << 20
KINDS = ("batch", "block", "view")
_SHARES = (2, 5, 3)


class Reader:
    """One thread's work."""

    def __init__(self, address: str, job: dict[str, Any], seed: int) -> None:
        self.door = address.partition(":")[0]
        self.latencies = {kind: Latencies() for kind in KINDS}
        self.errors: list[str] = []
        self.error_count = 0
        self.bytes = 0
        self.client = shoal.connect(address, deadline_s=job["deadline_s"])
        self._job = job
        self._chance = random.Random(seed)

    def run(self) -> None:
        while time.monotonic() < self._job["until_s"]:
            kind = self._chance.choices(KINDS, _SHARES)[0]
            try:
                getattr(self, f"_{kind}")()
            except Exception:  # the run goes on, and fails in the end
                self._wrong(traceback.format_exc(limit=-3))
        self.client.close()

    def _batch(self) -> None:
        wanted = [self._range(SMALL_BYTES_MAX) for _ in range(BATCH)]
        asked = [(self._url(number), offset, length) for number, offset, length in wanted]
        began_s = time.perf_counter()
        found = self.client.read_many(asked)
        self.latencies["batch"].add(time.perf_counter() - began_s)
        for (number, offset, length), data in zip(wanted, found, strict=True):
            self._check(number, offset, length, data)

    def _block(self) -> None:
        size, block_bytes = self._job["size"], self._job["block_bytes"]
        number, block = self._number(), self._chance.randrange(-(-size // block_bytes))
        offset = block * block_bytes
        began_s = time.perf_counter()
        data = self.client.read(self._url(number), offset, block_bytes)
        self.latencies["block"].add(time.perf_counter() - began_s)
        self._check(number, offset, min(block_bytes, size - offset), data)

    def _view(self) -> None:
        number, offset, length = self._range(VIEW_BYTES_MAX)
        began_s = time.perf_counter()
        with self.client.view(self._url(number), offset, length) as view:
            self.latencies["view"].add(time.perf_counter() - began_s)
            for part in view:
                self._check(number, offset, min(len(part), length), part)
                offset, length = offset + len(part), length - len(part)
        if length:
            self._wrong(f"a view that ends {length} bytes early")

    def _number(self) -> int:
        """Of an object; some are wanted more often than others."""
        return int(self._job["objects"] * self._chance.random() ** 1.5)

    def _range(self, most: int) -> tuple[int, int, int]:
        size = self._job["size"]
        offset = self._chance.randrange(size)
        return self._number(), offset, min(self._chance.randint(1, most), size - offset)

    def _url(self, number: int) -> str:
        return f"{self._job['origin']}/{number}/{self._job['size']}"

    def _check(self, number: int, offset: int, length: int, data: bytes | memoryview) -> None:
        self.bytes += len(data)
        if len(data) != length or not counting_origin.is_right(number, offset, data):
            self._wrong(f"object {number}, {len(data)} of {length} bytes from {offset}: not what the origin has")

    def _wrong(self, text: str) -> None:
        self.error_count += 1
        if len(self.errors) < ERRORS_KEPT:
            self.errors.append(text)


def main() -> None:
    job = json.loads(sys.stdin.readline())
    readers = [Reader(address, job, job["seed"] + number) for number, address in enumerate(job["addresses"])]
    print("ready", flush=True)
    threads = [threading.Thread(target=reader.run) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(_answer(readers)), flush=True)


def _answer(readers: list[Reader]) -> dict[str, Any]:
    latencies: dict[str, Latencies] = {}
    hits: Counter[str] = Counter()
    for reader in readers:
        hits.update(reader.client.stats().hits)
        for kind, found in reader.latencies.items():
            latencies.setdefault(f"{kind} {reader.door}", Latencies()).merge(found)
    return {
        "errors": [text for reader in readers for text in reader.errors][:ERRORS_KEPT],
        "error_count": sum(reader.error_count for reader in readers),
        "bytes": sum(reader.bytes for reader in readers),
        "fallbacks": sum(reader.client.stats().fallbacks for reader in readers),
        "corrupt_pages": sum(reader.client.stats().corrupt_pages for reader in readers),
        "hits": hits,
        "latencies": {kind: found.counts for kind, found in latencies.items()},
    }


if __name__ == "__main__":
    main()

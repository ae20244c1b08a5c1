"""kill -9 of a node in the middle of publishing and of writing to disk, again and again on the same directory."""

from __future__ import annotations

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal_core import limits
from tests.faults.conftest import Connect
from tests.support import waiting
from tests.support.running_node import MakeProcess

BLOCK = 64 * limits.KIB
ROUNDS = 7


class Reader:
    """Reads random ranges of random objects until it is told to stop; every byte is compared."""

    def __init__(self, client: shoal.Client, objects: dict[str, bytes], seed: int) -> None:
        self.client = client
        self.reads = 0
        self._objects = objects
        self._chance = random.Random(seed)
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        chance = self._chance
        while not self._stop.is_set():
            url = chance.choice(list(self._objects))
            data = self._objects[url]
            offset = chance.randrange(len(data))
            length = chance.choice([1, 1000, BLOCK, 5 * BLOCK, 20 * BLOCK])
            assert self.client.read(url, offset, length) == data[offset : offset + length]
            if chance.random() < 0.02:
                with contextlib.suppress(shoal.errors.NodeGone):  # unlike a read, it needs the node
                    self.client.evict(url)
            self.reads += 1


@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_killed_again_and_again(node_process: MakeProcess, connect: Connect, tmp_path: Path, door: str) -> None:
    """Every byte that anybody is served is right, what is on disk comes back, and none of it is damaged."""
    chance = random.Random(17)
    objects: dict[str, bytes] = {}
    for number in range(6):
        # Sizes of many classes: slabs change hands.
        data = chance.randbytes(chance.randrange(1, 60) * BLOCK + chance.randrange(BLOCK))
        (tmp_path / f"object-{number}").write_bytes(data)
        objects[f"file://{tmp_path}/object-{number}"] = data
    node = node_process(
        {
            "dram": {"budget_bytes": 5 * limits.MIB},
            "nvme": [{"directory": str(tmp_path / "cache"), "budget_bytes": 8 * limits.MIB}],
        }
    )
    recovered = 0
    for round_number in range(ROUNDS):
        readers = [
            Reader(connect(node.address if door == "unix" else node.tcp_address), objects, 100 * round_number + number)
            for number in range(2)
        ]
        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(reader.run) for reader in readers]
            wanted = chance.randrange(5, 60)
            try:
                waiting.until(lambda: sum(r.reads for r in readers) >= wanted or any(f.done() for f in reading))  # noqa: B023
                assert node.status()["corrupt_pages"] == {"dram": 0, "disk": 0, "origin": 0}
            finally:
                node.kill()
                for reader in readers:
                    reader.stop()
            for future in reading:
                future.result(30)
        for reader in readers:
            reader.client.close()
        node.start()
        recovered += node.status()["tiers"]["disk"]["blocks"]
        client = connect(node.address if door == "unix" else node.tcp_address)
        for url, data in objects.items():
            assert client.read(url) == data
        status = node.status()
        assert status["corrupt_pages"] == {"dram": 0, "disk": 0, "origin": 0}
        assert status["disk_errors"] == {"read": 0, "write": 0, "erase": 0}
        client.close()
    assert recovered > 20 * ROUNDS
    assert node.stop() == 0
    assert "Traceback" not in node.log and "never retrieved" not in node.log

"""why_slow() end to end: a real node, real workers, a loop that does nothing but wait, and the stage that it names."""

from __future__ import annotations

import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import SequentialSampler  # noqa: E402

import shoal  # noqa: E402
from shoal.torch import DataLoader, Dataset  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.http_origin import Fault, HttpOrigin  # noqa: E402
from tests.support.objects import MakeObject  # noqa: E402
from tests.support.running_node import InProcessNode, MakeInProcess, MakeProcess  # noqa: E402

FILE_BYTES = 64 << 10
FILES, BATCH = 192, 2


@pytest.fixture
def url(make_object: MakeObject) -> str:
    """A folder of files of one block each."""
    urls = [make_object(FILE_BYTES, f"many/{number:03}")[0] for number in range(FILES)]
    return urls[0].removesuffix("/000")


def length(data: bytes) -> int:
    return len(data)


def waited(loader: DataLoader) -> str:
    """Why the loop waited in an epoch that it does nothing else in. On a busy machine the first batch may take as long
    as all others; then it is of the next epoch."""
    said = ""
    for _ in range(5):
        for _ in loader:
            pass
        said = loader.why_slow()
        assert said.startswith("The loop waited for data ") and loader.stats().wait_share > 0.5, said
        if "before the first batch" not in said:
            break
    return said


# Reading


class Doorman:
    """Keeps each file's reply from the origin back until the loop waits for that file."""

    def __init__(self, origin: HttpOrigin, node: InProcessNode, paths: list[str]) -> None:
        self._node = node
        self._gates = {origin.url(path): threading.Event() for path in paths}
        for path, gate in zip(paths, self._gates.values(), strict=True):
            origin.fail(path, Fault(gate=gate))

    def __call__(self) -> None:
        closed = dict(self._gates)

        def open_what_is_waited_for() -> bool:
            with self._node.node.step():
                flights = [next(iter(members)) for members in self._node.node.arrivals._flights._members.values()]
                wanted = [flight.record.url for flight in flights if flight.demanded]
            for url in wanted:
                closed.pop(url, self._gates[url]).set()
            return not closed

        try:
            waiting.until(open_what_is_waited_for, "the loop has waited for every file")
        finally:
            for gate in self._gates.values():
                gate.set()


def test_a_first_epoch_over_a_slow_origin_names_the_origin(
    in_process_node: MakeInProcess, http_origin: HttpOrigin
) -> None:
    """However far the node fills ahead, no file is there before it is waited for."""
    paths = [f"/many/{number:03}" for number in range(FILES)]
    for number, path in enumerate(paths):
        http_origin.put(path, bytes([number]) * FILE_BYTES)
    node = in_process_node()
    doorman = Doorman(http_origin, node, paths)
    with shoal.connect(node.address) as client, ThreadPoolExecutor(1) as beside:
        assert client.node_stats()["loader_steps"] == 0  # it is connected
        names = [path.removeprefix("/many/") for path in paths]
        loader = DataLoader(
            Dataset(http_origin.url("/many"), names=names, transform=length, client=client), BATCH, shuffle=True
        )
        opening = beside.submit(doorman)
        said = waited(loader)
        opening.result()
        assert "Reading holds it" in said and "100% of the blocks had to come from the origin" in said
        assert said.endswith("(origin).")
        assert "(origin)" not in waited(loader), "all of it is in memory by now"


def test_what_lies_on_the_nodes_disk_only_names_the_disk(node_process: MakeProcess, url: str, tmp_path: Path) -> None:
    """A sampler of the user's own: of that order the node is told nothing, so it brings nothing ahead."""
    disk = {"directory": str(tmp_path / "cache"), "budget_bytes": "64MiB"}
    node = node_process({"dram": {"budget_bytes": "4MiB"}, "nvme": [disk]})
    with shoal.connect(node.address) as client:
        for info in client.list(url + "/"):
            client.read(info)
            waiting.until(lambda: client.node_stats()["disk_queue"] == 0, "the disk keeps up")
        waiting.until(lambda: client.node_stats()["tiers"]["disk"]["blocks"] == FILES, "all is on disk")
        dataset = Dataset(url, transform=length, client=client)
        said = waited(DataLoader(dataset, BATCH, sampler=SequentialSampler(dataset)))
        assert "Reading holds it" in said and "of the blocks came from the node's disk" in said
        assert said.endswith("(disk).")


@pytest.mark.parametrize(("door", "words"), [("tcp", "(network)"), ("unix", "came out of memory")])
def test_a_node_over_tcp_names_the_network(node_process: MakeProcess, url: str, door: str, words: str) -> None:
    node = node_process()
    with shoal.connect(node.address) as client:
        client.read_many(client.list(url + "/"))
    with shoal.connect(node.address if door == "unix" else node.tcp_address) as client:
        said = waited(DataLoader(Dataset(url, transform=length, client=client), BATCH, shuffle=True))
        assert "Reading holds it" in said and words in said, said


# Work on what was read


def slowly(data: bytes) -> int:
    return sum(len(zlib.compress(data, 9)) for _ in range(2))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_transform_names_decoding(node_process: MakeProcess, url: str, workers: int) -> None:
    """With a worker, of the second epoch: the first may wait for its start most of all."""
    with shoal.connect(node_process().address) as client:
        loader = DataLoader(
            Dataset(url, transform=slowly, client=client), BATCH, shuffle=True, num_workers=workers,
            persistent_workers=workers > 0, multiprocessing_context="fork" if workers else None,
        )  # fmt: skip
        waited(loader)
        said = waited(loader)
        assert "Decoding holds it: the transform took" in said, said
        assert f"(num_workers, {workers or 'none'} now)" in said


class Bulky:
    """Costs nothing to make, and something to hand over, as thousands of small objects do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return unpacked, (FILE_BYTES,)


def unpacked(size: int) -> int:
    return sum(zlib.crc32(bytes(size)) != 0 for _ in range(200))


def bulky(samples: list[Any]) -> dict[str, Any]:
    return {"data": [sample["data"] for sample in samples], "notes": Bulky()}


def test_batches_that_are_costly_to_hand_over_name_the_workers(node_process: MakeProcess, url: str) -> None:
    with shoal.connect(node_process().address) as client:
        loader = DataLoader(
            Dataset(url, transform=length, client=client), BATCH, shuffle=True, num_workers=1, collate_fn=bulky,
            persistent_workers=True, multiprocessing_context="fork",
        )  # fmt: skip
        waited(loader)
        said = waited(loader)
        assert "The 1 workers were at work only" in said and "handing batches over holds the loop (workers)" in said

"""A live training loop as a child process: it reads a data set step by step, and writes down when it got which bytes.

The test runs it on any host of its network and breaks the cluster meanwhile. Each step takes a batch from a `Reader`
and adds one line to a file: the time on the machine's monotonic clock, and a digest of all bytes so far. So a run under
faults is compared with a fault-free one bit by bit, and its stalls are the gaps between its lines. The torch reader
trains a small model on the samples, through `shoal.torch.DataLoader`, in an order that depends on nothing but the seed;
another kind of reader is one class with `step` and `close`, and a line in READERS.

The child is a fork of a server that has imported torch already; it enters its host's namespace, writes a line, and
begins when the test says so. A step takes `step_s` at least: the time that stands for a GPU's, during which nothing is
read.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import pytest

from tests.support import namespaces, waiting
from tests.support.namespaces import Network

START_TIMEOUT_S = 50.0
END_TIMEOUT_S = 50.0

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.support.training_loop", "torch", "shoal.torch"])
"""torch takes seconds to import: the server does it once, and each loop is a fork of it."""


class Settings(msgspec.Struct, frozen=True):
    """What the child is told, in a file."""

    url: str
    """Prefix of the samples' names."""
    names: tuple[str, ...]
    steps: int
    batch: int = 4
    step_s: float = 0.01
    seed: int = 0
    deadline_s: float = 20.0
    """Of each read."""
    reader: str = "torch"


class Place(NamedTuple):
    """Where the child runs and writes."""

    namespace: str
    config: str
    records_file: str
    log_file: str


class Record(NamedTuple):
    """One step: when its batch was there, and the digest of all bytes up to it."""

    at_s: float
    chain: str


class Reader(Protocol):
    """What a loop reads from."""

    def step(self) -> bytes:
        """The next bytes; after the last there are first ones again."""
        ...

    def close(self) -> dict[str, Any]:
        """What there is to say at the end."""
        ...


# In the test's process


class TrainingLoop:
    """A loop that runs, or has run, on a host. `config` is its client.json; its own files lie beside that."""

    def __init__(self, net: Network, host: str, settings: Settings, config: Path) -> None:
        self.settings = settings
        stem = config.parent / f"loop-{sum(1 for _ in config.parent.glob('loop-*.records'))}"
        self._records_file, self._log_file = stem.with_suffix(".records"), stem.with_suffix(".log")
        self._records_file.touch()
        self._go, waits = _processes.Pipe()
        place = Place(net.namespace(host).path, str(config), str(self._records_file), str(self._log_file))
        self._process = _processes.Process(target=main, args=(settings, place, waits), daemon=True)
        self._process.start()
        waits.close()

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    @property
    def steps_done(self) -> int:
        return self._records_file.read_bytes().count(b'"chain"')

    def begin(self) -> None:
        """It has imported what it needs, and starts to read."""
        waiting.until(lambda: self._alive() and self._records_file.stat().st_size, "the loop is ready", START_TIMEOUT_S)
        self._go.send("go")

    def records(self) -> list[Record]:
        """The steps so far."""
        return [Record(line["at_s"], line["chain"]) for line in self._lines() if "chain" in line]

    def await_step(self, number: int, seconds: float = waiting.DEADLINE_S) -> None:
        """So many steps are done, and not all: what the test does next happens to a loop that runs."""
        waiting.until(lambda: self._alive() and self.steps_done >= number, f"step {number}", seconds)
        assert self.steps_done < self.settings.steps, "the loop was faster than the test"

    def finish(self, *, early: bool = False, seconds: float = END_TIMEOUT_S) -> dict[str, Any]:
        """All steps are done, or, where `early`, the one that is under way; what the loop said at its end."""
        if early:
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                self._go.send("enough")
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"hangs after step {self.steps_done}:\n{self.log[-4000:]}"
        self._alive()
        assert early or self.steps_done == self.settings.steps
        return self._lines()[-1]["end"]

    def longest_stall_s(self, since_s: float = 0.0) -> float:
        """The longest time between two steps, of those that ended after `since_s`, without the step's own."""
        times = [record.at_s for record in self.records()]
        gaps = [after - before for before, after in itertools.pairwise(times) if after > since_s]
        return max(0.0, max(gaps, default=0.0) - self.settings.step_s)

    def close(self) -> None:
        """Whatever it is doing."""
        self._go.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join(END_TIMEOUT_S)
        self._process.close()

    def _alive(self) -> bool:
        if self._process.exitcode not in (None, 0):
            raise AssertionError(f"the loop ended with {self._process.exitcode}:\n{self.log[-4000:]}")
        return True

    def _lines(self) -> list[dict[str, Any]]:
        whole, _, _ = self._records_file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


StartLoop = Callable[..., TrainingLoop]


@pytest.fixture
def start_loop() -> Iterator[StartLoop]:
    """start_loop(net, host, settings, config) -> TrainingLoop that waits for `begin`; ended with the test."""
    with contextlib.ExitStack() as stack:

        def start(net: Network, host: str, settings: Settings, config: Path) -> TrainingLoop:
            return stack.enter_context(contextlib.closing(TrainingLoop(net, host, settings, config)))

        yield start


# In the child


class TorchReader:
    """Trains a linear model on what it reads."""

    def __init__(self, settings: Settings) -> None:
        import torch

        import shoal
        from shoal.torch import DataLoader, Dataset

        torch.set_num_threads(1)
        torch.manual_seed(settings.seed)
        self._torch = torch
        self._model = torch.nn.Linear(256, 1)
        self._begin: Callable[[], Any] = lambda: shoal.connect(deadline_s=settings.deadline_s)
        self._client: Any = None
        self._settings = settings
        self._batches = self._endless(Dataset, DataLoader)

    def step(self) -> bytes:
        torch = self._torch
        samples: list[bytes] = next(self._batches)["data"]
        counts = [
            torch.bincount(torch.frombuffer(bytearray(data), dtype=torch.uint8), minlength=256) for data in samples
        ]
        inputs = torch.stack(counts).float() / len(samples[0])
        wanted = torch.tensor([[float(data[0] & 1)] for data in samples])
        self._model.zero_grad()
        torch.nn.functional.mse_loss(self._model(inputs), wanted).backward()
        with torch.no_grad():  # by hand: torch's own optimizers import its compiler, which takes seconds
            for weights in self._model.parameters():
                assert weights.grad is not None
                weights -= 0.01 * weights.grad
        return b"".join(samples)

    def close(self) -> dict[str, Any]:
        weights = b"".join(value.numpy().tobytes() for value in self._model.state_dict().values())
        stats = self._client.stats().as_dict()
        self._client.close()
        return {"model": hashlib.sha256(weights).hexdigest(), "stats": stats}

    def _endless(self, dataset_class: Any, loader_class: Any) -> Iterator[dict[str, Any]]:
        self._client = self._begin()
        dataset = dataset_class(self._settings.url, names=self._settings.names, client=self._client)
        loader = loader_class(dataset, self._settings.batch, shuffle=True, drop_last=True, seed=self._settings.seed)
        while True:
            yield from loader


READERS: dict[str, Callable[[Settings], Reader]] = {"torch": TorchReader}


def run(
    reader: Reader, settings: Settings, say: Callable[[dict[str, Any]], None], is_enough: Callable[[], bool]
) -> None:
    """All steps of one reader."""
    chain = b""
    for _ in range(settings.steps):
        if is_enough():
            break
        data = reader.step()
        got_s = time.monotonic()
        chain = hashlib.sha256(chain + data).digest()
        say({"at_s": got_s, "chain": chain.hex()})
        time.sleep(max(0.0, got_s + settings.step_s - time.monotonic()))
    say({"end": reader.close()})


def main(settings: Settings, place: Place, orders: Connection) -> None:
    """The child."""
    log = os.open(place.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    namespaces.enter(place.namespace)
    os.environ["SHOAL_CONFIG"] = place.config
    reader = READERS[settings.reader](settings)
    with Path(place.records_file).open("w", buffering=1) as records:

        def say(line: dict[str, Any]) -> None:
            records.write(json.dumps(line) + "\n")

        say({"ready": True})
        with contextlib.suppress(EOFError):  # the test has ended
            orders.recv()
            run(reader, settings, say, orders.poll)

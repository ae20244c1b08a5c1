"""How long the training loop waited for data, and what held it up.

The loop's side is a stop-watch around every step. The workers' side is an account per process (`stages`) of what they
spent on reading, decoding and collating and of where blocks came from; it travels to the parent with each batch
(`Stamped`), so there is nothing to share and nothing to lock.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

_SMALL_BYTES = 16 << 10

_CALM = 0.02
"""A loop that waits for less than this part of its time is not held up."""

_BUSY = 0.7
"""Workers who are at work for more of their time than this are the bottleneck themselves."""


@dataclass(slots=True)
class Stages:
    """Seconds by stage, in the processes that read: the workers, or the loop's own."""

    read_s: float = 0.0
    """Waiting for the cache or the origin, and copying out of it."""
    decode_s: float = 0.0
    """In `transform`."""
    collate_s: float = 0.0
    """In `collate_fn`."""
    blocks: dict[str, int] = field(default_factory=dict[str, int])
    """Ranges read, by where they came from: 'shared memory', 'tcp', 'disk', 'origin', 'direct'..."""

    @property
    def busy_s(self) -> float:
        return self.read_s + self.decode_s + self.collate_s

    def add(self, other: Stages) -> None:
        self.read_s += other.read_s
        self.decode_s += other.decode_s
        self.collate_s += other.collate_s
        for name, count in other.blocks.items():
            self.blocks[name] = self.blocks.get(name, 0) + count


stages = Stages()
"""Of this process since the last batch was handed on."""


@contextmanager
def reading(client: Any) -> Iterator[None]:
    """Account a read of `client` in this process's stages."""
    before, began_s = dict(client.stats().hits), time.perf_counter()
    try:
        yield
    finally:
        stages.read_s += time.perf_counter() - began_s
        for name, count in client.stats().hits.items():
            if count != before[name]:
                stages.blocks[name] = stages.blocks.get(name, 0) + count - before[name]


@contextmanager
def decoding() -> Iterator[None]:
    """Account work on samples."""
    began_s = time.perf_counter()
    try:
        yield
    finally:
        stages.decode_s += time.perf_counter() - began_s


class Stamped:
    """A batch and what it cost. torch's pinning thread calls `pin_memory`.

    Small tensors in it, labels for instance, cross from a worker as bytes: torch would make a shared file and two
    connections for each.
    """

    __slots__ = ("batch", "stages")

    def __init__(self, batch: Any, cost: Stages) -> None:
        self.batch = batch
        self.stages = cost

    def pin_memory(self, device: Any = None) -> Stamped:
        from torch.utils.data._utils.pin_memory import pin_memory

        return Stamped(pin_memory(self.batch, device), self.stages)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (_each(_packed, self.batch), self.stages)


class _Small(NamedTuple):
    content: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]


def _unpacked(batch: Any, cost: Stages) -> Stamped:
    return Stamped(_each(_opened, batch), cost)


def _each(change: Callable[[Any], Any], batch: Any) -> Any:
    """The fields of a dict or a list, changed; anything else as it is."""
    if type(batch) is dict:
        return {name: change(value) for name, value in batch.items()}
    return [change(value) for value in batch] if type(batch) is list else batch


def _packed(value: Any) -> Any:
    if type(value) is not torch.Tensor or value.device.type != "cpu" or value.layout is not torch.strided:
        return value
    size = value.numel() * value.element_size()  # `nbytes`, which torch below 2.0 does not have
    if value.is_nested or value.requires_grad or value.is_quantized or size > _SMALL_BYTES:
        return value
    whole = value.contiguous()
    return _Small(ctypes.string_at(whole.data_ptr(), size), whole.dtype, tuple(whole.shape))


def _opened(value: Any) -> Any:
    if type(value) is not _Small:
        return value
    if not value.content:
        return torch.empty(value.shape, dtype=value.dtype)
    return torch.frombuffer(bytearray(value.content), dtype=value.dtype).view(value.shape)


class Stamping:
    """A collate_fn that stamps what the real one makes. Pickles as far as that one does."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Stamped:
        global stages
        began_s = time.perf_counter()
        batch = self.collate(samples)
        stages.collate_s += time.perf_counter() - began_s
        cost, stages = stages, Stages()
        return Stamped(batch, cost)


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """The latest epoch, so far if it is still going on."""

    batch_count: int
    sample_count: int | None
    """None for an iterable data set: only it knows."""
    wait_s: float
    """Spent inside the loader: reading and, without workers, decoding and collating too. Starting workers counts."""
    elapsed_s: float
    """From the start of the epoch to its latest batch, or to its end."""
    first_wait_s: float = 0.0
    """Of `wait_s`, until the first batch was there: starting workers, and their first reads."""
    longest_wait_s: float = 0.0
    """For any later batch."""
    worker_count: int = 0
    stages: Stages = field(default_factory=Stages)
    """Of all batches that arrived."""

    @property
    def samples_per_s(self) -> float | None:
        return None if self.sample_count is None or not self.elapsed_s else self.sample_count / self.elapsed_s

    @property
    def wait_share(self) -> float:
        """Part of the time that the loop stood still for data, 0 to 1."""
        return self.wait_s / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def wait_s_per_step(self) -> float:
        return self.wait_s / self.batch_count if self.batch_count else 0.0


class Account:
    """The stop-watch of one epoch."""

    def __init__(self, worker_count: int) -> None:
        self._begun_s = self._latest_s = time.perf_counter()
        self._worker_count = worker_count
        self._stages = Stages()
        self.wait_s = self._first_wait_s = self._longest_wait_s = 0.0
        self.batch_count = 0
        self._sample_count: int | None = 0

    def waited(self, since_s: float) -> float:
        """The loop asked at `since_s` and has its answer, of whatever kind, now. Seconds between."""
        self._latest_s = time.perf_counter()
        waited_s = self._latest_s - since_s
        self.wait_s += waited_s
        if self.batch_count <= 1:
            self._first_wait_s += waited_s
        else:
            self._longest_wait_s = max(self._longest_wait_s, waited_s)
        return waited_s

    def received(self, sample_count: int | None, cost: Stages) -> None:
        self.batch_count += 1
        self._stages.add(cost)
        if sample_count is None or self._sample_count is None:
            self._sample_count = None
        else:
            self._sample_count += sample_count

    def stats(self) -> LoaderStats:
        return LoaderStats(
            self.batch_count,
            self._sample_count,
            self.wait_s,
            self._latest_s - self._begun_s,
            self._first_wait_s,
            self._longest_wait_s,
            self._worker_count,
            self._stages,
        )


def explain(stats: LoaderStats) -> str:
    """Which stage holds the loop, in words."""
    if not stats.batch_count:
        return "No batch has been read yet."
    share = f"{stats.wait_share:.0%} of the time ({stats.wait_s:.2f} of {stats.elapsed_s:.2f} s)"
    if stats.wait_share < _CALM:
        return f"The loop does not wait for data: {share}."
    said = f"The loop waited for data {share}. "
    if stats.first_wait_s > stats.wait_s / 2 and stats.batch_count > 1:
        what = "starting workers and their first reads" if stats.worker_count else "the first read"
        return said + f"Most of it before the first batch, {stats.first_wait_s:.2f} s: {what}. {_advice_start(stats)}"
    cost = stats.stages
    capacity_s = max(stats.worker_count * stats.elapsed_s, 1e-9) if stats.worker_count else max(stats.wait_s, 1e-9)
    if stats.worker_count and cost.busy_s < _BUSY * capacity_s:
        return said + (
            f"The {stats.worker_count} workers were at work only {cost.busy_s / capacity_s:.0%} of theirs: handing "
            "batches over holds the loop (workers). Smaller batches of larger samples, views instead of copies, or "
            "a larger prefetch_factor help."
        )
    name, seconds = max(
        (("read", cost.read_s), ("decode", cost.decode_s), ("collate", cost.collate_s)), key=lambda stage: stage[1]
    )
    part = f"{seconds:.2f} s, {seconds / max(cost.busy_s, 1e-9):.0%} of the work"
    if name == "decode":
        return said + f"Decoding holds it: the transform took {part}. {_more_workers(stats)}"
    if name == "collate":
        return said + f"Collating holds it (workers): collate_fn took {part}. {_more_workers(stats)}"
    return said + f"Reading holds it: {part}; {_where(cost.blocks)}"


def _advice_start(stats: LoaderStats) -> str:
    return "persistent_workers=True starts them once." if stats.worker_count else ""


def _more_workers(stats: LoaderStats) -> str:
    now = f"{stats.worker_count} now" if stats.worker_count else "none now"
    return f"More workers (num_workers, {now}) or a cheaper function help."


def _where(blocks: dict[str, int]) -> str:
    """What the reads waited for."""
    total = sum(blocks.values())
    if not total:
        return "by the data set itself, which is not Shoal's (workers)."
    slow = {
        "origin": blocks.get("origin", 0) + blocks.get("direct", 0),
        "disk": blocks.get("disk", 0),
        "network": blocks.get("tcp", 0),
    }
    name, count = max(slow.items(), key=lambda entry: entry[1])
    if count * 20 < total:
        return f"{1 - count / total:.0%} came out of memory: copying them holds the loop (workers)."
    words = {
        "origin": "had to come from the origin: a first epoch, or a cache that is smaller than the data set",
        "disk": "came from the node's disk: a larger DRAM budget would hold them",
        "network": "came over TCP: a node on this host would serve them from shared memory",
    }
    return f"{count / total:.0%} of the blocks {words[name]} ({name})."


def _forked() -> None:
    global stages
    stages = Stages()  # what the parent read is in its own account


os.register_at_fork(after_in_child=_forked)

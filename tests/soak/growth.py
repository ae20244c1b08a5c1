"""What processes need while they run, sampled: memory of their own and open descriptors, and whether either grows.

Shared memory is left out: it is bounded by the nodes' budgets, and counted once for each client that maps it. Only the
second half of a run counts: until then caches, pools and connections fill up. Its last third is compared with its
first; a little more is no growth, because memory is had in pieces and what is needed at a moment varies.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

EVERY_S = 0.5
MEMORY_FRACTION, MEMORY_BYTES = 0.10, 16 << 20
DESCRIPTORS_FRACTION, DESCRIPTORS = 0.10, 8


class Sample(NamedTuple):
    memory_bytes: int
    descriptors: int


class Growth:
    """Samples processes by name from `start` to `stop`."""

    def __init__(self, process_ids: Mapping[str, int]) -> None:
        self.samples: dict[str, list[Sample]] = {name: [] for name in process_ids}
        self._process_ids = dict(process_ids)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-growth", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def problems(self) -> list[str]:
        """Who grew."""
        found: list[str] = []
        for name, samples in self.samples.items():
            for what, values, fraction, least in (
                ("memory", [each.memory_bytes for each in samples], MEMORY_FRACTION, MEMORY_BYTES),
                ("descriptors", [each.descriptors for each in samples], DESCRIPTORS_FRACTION, DESCRIPTORS),
            ):
                before, after = thirds(values)
                if after > before * (1 + fraction) + least:
                    found.append(f"{name}: {what} grew in the second half from {before:.0f} to {after:.0f}")
        return found

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            for name, process_id in self._process_ids.items():
                with contextlib.suppress(OSError):  # it has ended: that is for somebody else to notice
                    self.samples[name].append(sample(process_id))


def sample(process_id: int) -> Sample:
    _, resident, shared, *_ = map(int, Path(f"/proc/{process_id}/statm").read_text().split())
    memory_bytes = (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return Sample(memory_bytes, len(os.listdir(f"/proc/{process_id}/fd")))


def thirds(values: list[int]) -> tuple[float, float]:
    """Medians of the first and of the last third of the second half; 0 where there is too little."""
    half = values[len(values) // 2 :]
    third = len(half) // 3
    if not third:
        return 0.0, 0.0
    return statistics.median(half[:third]), statistics.median(half[-third:])

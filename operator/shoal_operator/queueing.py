"""The queue between what was seen and what is done about it: keys, each at most once in it and at most once at work.

An event puts a key in; that is all an event does. A key that is put in while it waits is the same key; one put in while
it is at work runs once more afterwards. Keys have a due time, so that a retry, a look-again and a burst are one thing:
the earliest due time wins, and a kind may have a least interval between two beginnings, which is what makes a thousand
node events two reconciles. A failure is tried again after 0.5 s, doubling to a minute, with jitter; a success forgets
the failures. While the gate is shut nothing begins (another process leads, or the term could not be renewed).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_LOG = logging.getLogger("shoal.operator.queue")

BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 60.0
RECONCILE_TIMEOUT_S = 60.0
"""No reconcile may take longer: it makes a handful of calls, each with a limit of its own."""


class Key(NamedTuple):
    """Which object is looked at."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass
class _Entry:
    due_s: float | None = None
    """None: not waiting."""
    running: bool = False
    began_s: float = float("-inf")
    failures: int = 0
    added_s: float = 0.0
    """When it began to be due: how long it has been kept waiting is counted from here."""


Reconcile = Callable[[Key], Awaitable[float | None]]
"""Does what is to be done for one key; answers in how many seconds to look again, or None."""

Outcome = Callable[[Key, float, BaseException | None], None]
"""Told of each reconcile: key, seconds, and what it failed of."""


class Queue:
    """Keys that wait, and those at work. One event loop; no locks."""

    def __init__(
        self,
        reconcile: Reconcile,
        *,
        at_once: int = 8,
        interval_s: Mapping[str, float] | None = None,
        outcome: Outcome | None = None,
        expected: tuple[type[Exception], ...] = (TimeoutError,),
        now_s: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self._reconcile = reconcile
        self._at_once = at_once
        self._interval_s = interval_s or {}
        self._outcome = outcome
        self._expected = expected
        self._now_s = now_s
        self._chance = chance or random.Random()
        self._entries: dict[Key, _Entry] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self.gate = asyncio.Event()

    def add(self, key: Key, after_s: float = 0.0) -> None:
        """Look at `key`, in `after_s` seconds at the latest (sooner if it was to be looked at sooner)."""
        now_s = self._now_s()
        entry = self._entries.setdefault(key, _Entry())
        due_s = max(now_s + after_s, entry.began_s + self._interval_s.get(key.kind, 0.0))
        if entry.due_s is not None and entry.due_s <= due_s:
            return
        entry.due_s = entry.added_s = due_s
        heapq.heappush(self._heap, (due_s, next(self._numbers), key))
        self._changed.set()

    def depth(self) -> int:
        """Keys that are due or at work."""
        now_s = self._now_s()
        return sum(
            entry.running or (entry.due_s is not None and entry.due_s <= now_s) for entry in self._entries.values()
        )

    def oldest_s(self) -> float:
        """How long the key that is most overdue has been kept waiting, or been at work."""
        if not self.gate.is_set():
            return 0.0
        now_s = self._now_s()
        waits = [
            now_s - (entry.began_s if entry.running else entry.added_s)
            for entry in self._entries.values()
            if entry.running or (entry.due_s is not None and entry.due_s <= now_s)
        ]
        return max(waits, default=0.0)

    async def run(self) -> None:
        """Until cancelled; what is at work then is cancelled too."""
        try:
            while True:
                await self.gate.wait()
                self._changed.clear()
                wait_s = self._begin_due()
                try:
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def shut(self) -> None:
        """Nothing begins until the gate is opened again."""
        self.gate.clear()
        self._changed.set()

    def _begin_due(self) -> float | None:
        """Begin what is due; answers how long until more is, None for: not before something changes."""
        while self._heap and len(self._running) < self._at_once:
            due_s, _, key = self._heap[0]
            entry = self._entries.get(key)
            if entry is None or entry.due_s != due_s or entry.running:
                heapq.heappop(self._heap)  # put in again sooner, or runs: `_work` puts it in again when it ends
                continue
            if due_s > self._now_s():
                return due_s - self._now_s()
            heapq.heappop(self._heap)
            self._begin(key, entry)
        return None

    def _begin(self, key: Key, entry: _Entry) -> None:
        entry.due_s, entry.running, entry.began_s = None, True, self._now_s()
        task = asyncio.create_task(self._work(key, entry), name=f"reconcile {key}")
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._changed.set()

    async def _work(self, key: Key, entry: _Entry) -> None:
        error: Exception | None = None
        again_s: float | None = None
        try:
            async with asyncio.timeout(RECONCILE_TIMEOUT_S):
                again_s = await self._reconcile(key)
        except Exception as caught:
            error = caught
            again_s = self._backoff_s(entry.failures)
            entry.failures += 1
            text = str(caught) or type(caught).__name__
            trace = None if isinstance(caught, self._expected) else caught  # the world's failures need no traceback
            _LOG.warning(
                "%s: attempt %d failed, again in %.1f s: %s", key, entry.failures, again_s, text, exc_info=trace
            )
        else:
            entry.failures = 0
        entry.running = False
        waiting_s, entry.due_s = entry.due_s, None
        if self._outcome is not None:
            self._outcome(key, self._now_s() - entry.began_s, error)
        if waiting_s is not None:
            self.add(key, max(0.0, waiting_s - self._now_s()))
        if again_s is not None:
            self.add(key, again_s)
        if entry.due_s is None and key.kind not in self._interval_s:  # few enough to remember when they last began
            del self._entries[key]

    def _backoff_s(self, failures: int) -> float:
        return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(failures, 10)) * self._chance.uniform(0.75, 1.25)

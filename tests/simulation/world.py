"""Simulated time: a queue of what is to happen, and the tasks that wait in it.

Everything that happens is an event at a nanosecond; of two at the same one the earlier made goes first. All chance
comes from one seeded generator. So a seed is a whole history: `digest` sums up all that happened, and two runs of one
seed have the same. There is no thread and no other clock.

A task is a generator: it yields a number of nanoseconds to sleep, a `Future` to wait for, or (future, nanoseconds) to
wait no longer than that, and is sent the outcome, or LATE. Tasks and events belong to a `Process`: one that is killed
takes them along, one that is stopped (SIGSTOP) finds them all when it goes on.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import xxhash

US = 1_000
MS = 1_000_000
S = 1_000_000_000
START_NS = 1_000 * S
STORY_EVENTS = 40_000
"""Notes that are kept for telling what happened."""


class _Late:
    def __repr__(self) -> str:
        return "LATE"


LATE = _Late()
"""What a task is sent that waited long enough."""


class Future:
    """Something that will be known."""

    __slots__ = ("_waiting", "done", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self._waiting: list[Callable[[Any], None]] = []

    def set(self, value: Any = None) -> None:
        """Once; what comes later is not heard."""
        if self.done:
            return
        self.done, self.value = True, value
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell(value)

    def then(self, tell: Callable[[Any], None]) -> None:
        """Called when it is known, at once if it is."""
        if self.done:
            tell(self.value)
        else:
            self._waiting.append(tell)


Work = Generator[Any, Any, Any]


class Process:
    """What can be killed and stopped: a node's process, a client, the world itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.tasks: dict[Task, None] = {}
        self.deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        """What would have happened while it was stopped."""

    def kill(self) -> None:
        """Its tasks end where they are; what they would have done at their end, they do to a state nobody sees."""
        self.alive = False
        self.deferred.clear()
        for task in list(self.tasks):
            task.cancel()


class Task:
    """A generator under way."""

    __slots__ = ("_number", "_process", "_work", "_world", "ended", "result")

    def __init__(self, world: World, process: Process, work: Work) -> None:
        self._world, self._process, self._work = world, process, work
        self._number = 0
        """Of its present wait: a wake-up for an earlier one is void."""
        self.ended = Future()
        self.result: Any = None
        process.tasks[self] = None

    def step(self, number: int, value: Any) -> None:
        """Go on until the next wait."""
        if number != self._number or self.ended.done:
            return
        self._number += 1
        world = self._world
        try:
            while True:
                wanted = self._work.send(value)
                if isinstance(wanted, int):
                    world.at(wanted, self._process, self.step, self._number, None)
                    return
                future, limit_ns = wanted if isinstance(wanted, tuple) else (wanted, None)
                if not future.done:
                    break
                value = future.value
        except StopIteration as end:
            self.result = end.value
            self._end()
            return
        except BaseException:
            self._end()
            raise
        future.then(self._waker(self._number))
        if limit_ns is not None:
            world.at(max(0, limit_ns), self._process, self.step, self._number, LATE)

    def _waker(self, number: int) -> Callable[[Any], None]:
        return lambda value: self._world.soon(self._process, self.step, number, value)

    def cancel(self) -> None:
        """It ends at its present wait."""
        if not self.ended.done:
            self._number += 1
            self._end()
            self._work.close()

    def _end(self) -> None:
        self._process.tasks.pop(self, None)
        self.ended.set(self.result)


class World:
    """The clock, the queue, the chance and the notes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_ns = START_NS
        self.chance = random.Random(seed)
        self.steps = 0
        self.after_step: list[Callable[[], None]] = []
        """Called after each event."""
        self._queue: list[tuple[int, int, Process, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._hash = xxhash.xxh3_64()
        self._notes: deque[tuple[int, str, str, Any, Any]] = deque(maxlen=STORY_EVENTS)
        self.self = Process("world")

    def at(self, delay_ns: int, process: Process, happens: Callable[..., None], *arguments: Any) -> None:
        """So long from now."""
        self._number += 1
        heapq.heappush(self._queue, (self.now_ns + delay_ns, self._number, process, happens, arguments))

    def soon(self, process: Process, happens: Callable[..., None], *arguments: Any) -> None:
        self.at(0, process, happens, *arguments)

    def spawn(self, process: Process, work: Work) -> Task:
        """Begin a task; its first part runs as an event of its own."""
        task = Task(self, process, work)
        self.at(0, process, task.step, 0, None)
        return task

    def spawn_now(self, process: Process, work: Work) -> None:
        """Begin a task within the present event, which is one of that process."""
        Task(self, process, work).step(0, None)

    def run(self, until_ns: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Let things happen until then, or until `stop`."""
        queue = self._queue
        while queue and queue[0][0] <= until_ns and not stop():
            self.now_ns, number, process, happens, arguments = heapq.heappop(queue)
            if not process.alive:
                continue
            if process.stopped:
                process.deferred.append((happens, arguments))
                continue
            self.steps += 1
            self._hash.update(b"%d %d;" % (self.now_ns, number))
            happens(*arguments)
            for look in self.after_step:
                look()
        self.now_ns = max(self.now_ns, until_ns) if not queue or queue[0][0] > until_ns else self.now_ns

    def stop(self, process: Process) -> None:
        """As SIGSTOP does."""
        process.stopped = True

    def go_on(self, process: Process) -> None:
        """As SIGCONT does: all that waited happens now."""
        process.stopped = False
        deferred, process.deferred = process.deferred, []
        for happens, arguments in deferred:
            self.at(0, process, happens, *arguments)

    def end(self) -> None:
        """Nothing happens any more: what waited is forgotten, so that little is left to clean up."""
        self._queue.clear()
        self.after_step.clear()

    def note(self, what: str, who: str, key: Any = None, more: Any = None) -> None:
        """For the story, and for the digest."""
        self._notes.append((self.now_ns, what, who, key, more))
        self._hash.update(f"{what} {who} {key!r} {more!r};".encode())

    @property
    def digest(self) -> str:
        """Of everything that happened so far."""
        return self._hash.hexdigest()

    def story(self, keys: list[Any], count: int = 60) -> list[str]:
        """The last notes that concern one of the keys, or nothing in particular."""
        found = [note for note in self._notes if not keys or note[3] in keys or note[3] is None]
        return [tell(note) for note in found[-count:]]


def tell(note: tuple[int, str, str, Any, Any]) -> str:
    """One line for people."""
    now_ns, what, who, key, more = note
    shown = key.hex()[:8] if isinstance(key, bytes) else "" if key is None else str(key)
    return f"{(now_ns - START_NS) / S:12.6f}  {who:10} {what:18} {shown:10} {'' if more is None else more}"

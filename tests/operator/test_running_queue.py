"""The queue of keys: each once, one at a time, again after a failure, no more often than its kind may."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from shoal_operator.queueing import BACKOFF_FIRST_S, Key, Queue

A = Key("Dataset", "team", "a")
B = Key("Dataset", "team", "b")
POOL = Key("CachePool", "", "pool")


class Clock:
    """Time that passes when the test says so; the queue's waits are asked for again at each turn."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Looks:
    """What was looked at; each look lasts until it is let go, where `held`."""

    def __init__(self) -> None:
        self.began: list[Key] = []
        self.running: set[Key] = set()
        self.held = False
        self.go = asyncio.Event()
        self.fail: dict[Key, int] = {}
        self.again: dict[Key, float] = {}

    async def __call__(self, key: Key) -> float | None:
        assert key not in self.running
        self.began.append(key)
        self.running.add(key)
        try:
            if self.held:
                await self.go.wait()
            if self.fail.get(key, 0) > 0:
                self.fail[key] -= 1
                raise TimeoutError("not now")
            return self.again.pop(key, None)
        finally:
            self.running.discard(key)


def run(test: Callable[[Queue, Looks, Clock], Awaitable[None]], **options: object) -> None:
    async def whole() -> None:
        looks, clock = Looks(), Clock()
        queue = Queue(looks, now_s=clock, chance=random.Random(1), **options)  # type: ignore[arg-type]
        queue.gate.set()
        task = asyncio.create_task(queue.run())
        try:
            await asyncio.wait_for(test(queue, looks, clock), 10)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(whole())


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_key_is_in_it_once() -> None:
    async def test(queue: Queue, looks: Looks, _: Clock) -> None:
        for _ in range(5):
            queue.add(A)
        queue.add(B)
        await turns()
        assert looks.began == [A, B]
        assert queue.depth() == 0

    run(test)


def test_a_key_that_is_put_in_while_it_is_at_work_runs_once_more() -> None:
    async def test(queue: Queue, looks: Looks, _: Clock) -> None:
        looks.held = True
        queue.add(A)
        await turns()
        queue.add(A)
        queue.add(A)
        await turns()
        assert looks.began == [A]
        assert queue.depth() == 1
        looks.go.set()
        await turns()
        assert looks.began == [A, A]
        assert queue.depth() == 0

    run(test)


def test_no_more_at_once_than_allowed() -> None:
    async def test(queue: Queue, looks: Looks, _: Clock) -> None:
        looks.held = True
        for number in range(10):
            queue.add(Key("Dataset", "team", str(number)))
        await turns()
        assert len(looks.running) == 3
        looks.go.set()
        await turns(40)
        assert len(looks.began) == 10

    run(test, at_once=3)


def test_a_kind_with_an_interval_takes_a_burst_as_one() -> None:
    async def test(queue: Queue, looks: Looks, clock: Clock) -> None:
        queue.add(POOL)
        await turns()
        for _ in range(100):
            queue.add(POOL)
        await turns()
        assert looks.began == [POOL]
        clock.now += 0.5
        queue.add(A)  # wakes the queue, which looks at the clock
        await turns()
        assert looks.began == [POOL, POOL, A]

    run(test, interval_s={"CachePool": 0.5})


def test_the_earliest_time_wins() -> None:
    async def test(queue: Queue, looks: Looks, clock: Clock) -> None:
        queue.add(A, 60)
        queue.add(A, 5)
        queue.add(A, 30)
        await turns()
        assert looks.began == []
        clock.now += 5
        queue.add(B)
        await turns()
        assert looks.began == [A, B]
        clock.now += 60
        queue.add(B)
        await turns()
        assert looks.began == [A, B, B]

    run(test)


def test_a_failure_is_tried_again_later_and_later() -> None:
    async def test(queue: Queue, looks: Looks, clock: Clock) -> None:
        looks.fail[A] = 3
        queue.add(A)
        await turns()
        for attempt in range(3):
            before = len(looks.began)
            clock.now += BACKOFF_FIRST_S * 2**attempt * 0.7
            queue.add(B)
            await turns()
            assert looks.began[before:] == [B]  # not yet
            clock.now += BACKOFF_FIRST_S * 2**attempt * 0.6
            queue.add(B)
            await turns()
            assert looks.began[before:] == [B, A, B] or looks.began[before:] == [B, B, A]
        assert looks.fail[A] == 0

    run(test)


def test_it_may_ask_to_be_looked_at_again() -> None:
    async def test(queue: Queue, looks: Looks, clock: Clock) -> None:
        looks.again[A] = 7.0
        queue.add(A)
        await turns()
        clock.now += 7.0
        queue.add(B)
        await turns()
        assert looks.began[0] == A
        assert sorted(looks.began[1:]) == [A, B]

    run(test)


def test_nothing_begins_while_the_gate_is_shut() -> None:
    async def test(queue: Queue, looks: Looks, clock: Clock) -> None:
        queue.shut()
        queue.add(A)
        await turns()
        clock.now += 1000
        assert looks.began == []
        assert queue.oldest_s() == 0.0
        queue.gate.set()
        await turns()
        assert looks.began == [A]

    run(test)


def test_a_look_that_takes_too_long_is_ended_and_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_operator.queueing.RECONCILE_TIMEOUT_S", 0.01)
    outcomes: list[BaseException | None] = []

    async def test(queue: Queue, looks: Looks, clock: Clock) -> None:
        looks.held = True
        queue.add(A)
        await turns()
        clock.now += 130
        assert queue.oldest_s() == 130
        while not outcomes:  # noqa: ASYNC110 - a turn of the loop at a time
            await asyncio.sleep(0)
        assert isinstance(outcomes[0], TimeoutError)

    run(test, outcome=lambda _, __, error: outcomes.append(error))

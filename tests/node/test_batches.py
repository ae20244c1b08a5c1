"""The outcomes of one `get`: all at once, one by one, or not in time."""

from __future__ import annotations

import threading
import time

from shoal_core.errors import OriginError
from shoal_node.batches import Batch, Delivered


def test_what_is_there_already_is_not_waited_for() -> None:
    batch = Batch(1)
    batch.outcomes[0] = Delivered(7, 0)
    assert batch.wait(-1)


def test_it_waits_for_the_last_and_keeps_the_order() -> None:
    batch = Batch(3)
    error = OriginError("no")
    for _ in range(3):
        batch.expect()
    waiter: list[bool] = []
    thread = threading.Thread(target=lambda: waiter.append(batch.wait(10)))
    thread.start()
    assert batch.deliver(2, Delivered(5, 1))
    assert batch.deliver(0, error)
    assert not batch.wait(0.01)
    assert batch.deliver(1, Delivered(6, 2))
    thread.join(10)
    assert waiter == [True]
    assert batch.outcomes == [error, Delivered(6, 2), Delivered(5, 1)]


def test_it_gives_up_in_time_and_takes_nothing_more() -> None:
    batch = Batch(2)
    batch.expect()
    batch.expect()
    batch.deliver(0, Delivered(1, 0))
    started = time.monotonic()
    assert not batch.wait(0.05)
    assert 0.04 < time.monotonic() - started < 2
    batch.abandoned = True
    assert not batch.deliver(1, Delivered(2, 0)), "its block need not be held"
    assert batch.outcomes == [Delivered(1, 0), None]

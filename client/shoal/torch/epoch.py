"""One epoch that a loop goes through: torch's iterator under a stop-watch, and the steps that its batches are of.

A batch is counted when the loop takes it. One that ends in an error is lost: if the loop goes on after all, it is with
the next. Whether torch has given a batch up or will hand it over later (a timeout, an interrupt) its own count tells.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.torch.feed import Run
    from shoal.torch.lookahead import Lookahead
    from shoal.torch.marks import Marks
    from shoal.torch.waiting import Account, Stamped

_END_SEEN_S = 1.0


class Epoch:
    """The loader does not hold it: workers end when the loop does."""

    def __init__(
        self,
        loader: object,
        batches: Any,
        run: Run,
        account: Account,
        marks: Marks | None,
        lookahead: Lookahead | None,
        length: int | None,
    ) -> None:
        self._loader = loader
        """Kept, because the lookahead ends with it: nobody else keeps the one of `for batch in DataLoader(...)`."""
        self._batches = batches
        self._lookahead = lookahead
        self._run = run
        self._account = account
        self._marks = marks
        self._length = length

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._run.left:
            raise BadRequest("iter() was called again: with persistent_workers a loader has one epoch at a time")
        asked_s = time.perf_counter()
        before = self._received()
        try:
            stamped: Stamped = next(self._batches)
        except StopIteration:
            self._run.ended = True
            self._account.waited(asked_s)
            raise
        except BaseException as error:
            received = self._received()
            # Without workers a step is drawn for the batch that is made of it at once.
            self._run.lost(len(self._run.drawn) if before is None or received is None else received - before)
            if isinstance(error, ConnectionError | EOFError) and (pid := self._ended_worker()) is not None:
                raise RuntimeError(f"DataLoader worker (pid {pid}) exited unexpectedly") from error
            raise
        if self._marks is None:
            self._account.received(None, stamped.stages)
            self._account.waited(asked_s)
            return stamped.batch
        step = self._run.taken()
        self._account.received(len(step.items), stamped.stages)
        waited_s = self._account.waited(asked_s)
        if self._lookahead is not None:
            self._lookahead.took(self._run, step, waited_s)
        return self._marks.add(stamped.batch, step)

    def _received(self) -> int | None:
        """Batches that torch has taken from its workers, whole or failed."""
        return getattr(self._batches, "_rcvd_idx", None)

    def _ended_worker(self) -> int | None:
        """A worker that is killed may be seen by its sockets first, and torch would say no more than that of them."""
        workers: list[Any] = getattr(self._batches, "_workers", [])
        ended = connection.wait([worker.sentinel for worker in workers], _END_SEEN_S) if workers else []
        return next((worker.pid for worker in workers if worker.sentinel in ended), None)

    def __len__(self) -> int:
        """Steps from where this epoch began: the rest, after a resume."""
        return len(self._batches) if self._length is None else self._length

    def __getattr__(self, name: str) -> Any:
        """What torch's iterator has, for libraries that look into it."""
        if name == "_batches":
            raise AttributeError(name)
        return getattr(self._batches, name)

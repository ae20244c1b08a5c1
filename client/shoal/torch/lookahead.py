"""Tells the node what comes next: which blocks to have ready, and which will not be needed for long.

The order is computed, so the future of every sample is known: what this rank reads in the next steps, and when a
sample that was just read has its turn again, which is in the next epoch and at a position that the order's inverse
gives. A thread of its own says so once per step or rarer, as plans (`shoal.planning`), and the node fills ahead and
evicts by next use. The loop only puts what it took into a queue here. A plan is advice: if the node does not take it,
or is gone, reading goes on as it would without.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from shoal.objects import ObjectInfo
from shoal.planning import Planner
from shoal.torch.feed import OwnOrder, Run
from shoal.torch.formats.interface import Place
from shoal.torch.sharding import Step
from shoal.torch.subsets import Located
from shoal_core import limits
from shoal_core.errors import Closed, ShoalError

if TYPE_CHECKING:
    from shoal_core.order import Order

log = logging.getLogger("shoal")

Use = tuple[ObjectInfo, int, int, int]
"""(object, first block, count of blocks, position of the stream)."""

_AHEAD_SAMPLES = 1024
_AHEAD_STEPS = 4
"""How far ahead of the workers the node is told: so many of this rank's samples, and so many steps at least. It fills
as far as it has free memory; what it does not take is said again."""

_AHEAD_SAMPLES_EVICTING = 64
"""How far ahead it fills where something has to go for it, at most; and at most a 200th of an epoch, or two steps. What
goes early is missed longer: a window of W samples costs W of them once more in every epoch."""

_USES_MAX = 2048
_BLOCKS_MAX = limits.PLAN_BLOCKS_MAX
"""In one plan; half of them at most for what was read, so that what comes has its share."""

_LATE_MAX = 4 * _USES_MAX
"""Samples whose next use waits to be told; of more, while the node does not answer, the oldest are left out."""

_NEIGHBOURS_MAX = 1 << 16
"""Samples looked at to find the next use of the blocks of one plan, where several samples share a block."""

_EVERY_SAMPLE_MAX = 1 << 18
"""Of a data set up to this size every sample's next use is told at the start, which is what keeps a warm cache of an
earlier run warm; of a larger one only what was read since."""

_SETTLED_PLANS = 4
_QUIET_STEPS = 16
"""When so many plans in a row told the node nothing new, because all is in memory and nothing has to go, it is told one
step in so many, until that is news."""

_MORE = 256
"""Of the next uses told at the start, in one plan."""

_AT_ONCE = 64
_PAUSE_S = 0.0002
"""So many samples are looked up at a stretch, some 0.3 ms of Python, which the training loop's thread has to wait for;
without a pause it would wait for all of a plan."""

_APART_S = 0.02
_APART_UNSETTLED_S = 0.002
"""Between two plans, at least: one for several steps costs less than one for each. Less while something has to go: what
was read, and whose next use is not told yet, goes before its time."""

_TICK_S = 0.5
_EXIT_S = 2.0

_open: weakref.WeakSet[Lookahead] = weakref.WeakSet()


class Lookahead:
    """One loader's thread. It ends with `close`, which a finalizer of the loader calls."""

    def __init__(self, dataset: Located, source: OwnOrder) -> None:
        self._dataset = dataset
        self._source = source
        self._plan = source.plan
        self._orders: dict[tuple[int, int], Order] = {}
        """By (seed, epoch)."""
        self._planner = Planner(dataset.client, os.urandom(16))
        self._wake = threading.Event()
        self._end = threading.Event()
        self._said = False
        self._pid = os.getpid()
        self._heard: deque[tuple[Run, Step | None, float]] = deque()
        """What the loop did since the last plan: an epoch it began (None), or a step it took and how long it waited."""
        self._run_now: Run | None = None
        self._position = 0
        """Where the loop is, in items of all epochs, one after another."""
        self._waited_s, self._steps = 0.0, 0
        """Not reported yet."""
        self._stream: Iterator[tuple[int, Step]] | None = None
        self._coming: deque[tuple[int, int]] = deque()
        """(position of the stream, sample of the step that begins there) that the node has not taken in."""
        self._settled = 0
        """Plans in a row of which the node said that it had all, and room for it."""
        self._refused = False
        """The node did not take all in the last time; it is told less at a time."""
        self._late: deque[int] = deque(maxlen=_LATE_MAX)
        """Samples that were taken, and whose next use was not told yet."""
        self._rest = 0
        """Samples from here on have not been told at the start."""
        self._connection: bytes | None = None
        """Over which the node was told."""
        self._thread = threading.Thread(target=self._run, name="shoal-lookahead", daemon=True)
        _open.add(self)

    @property
    def ours(self) -> bool:
        """False in a forked child, which has no such thread, and when it has ended."""
        return os.getpid() == self._pid and not self._end.is_set()

    def begin(self, run: Run) -> None:
        """An epoch begins. Called by the loop."""
        self._hear(run, None, 0.0)
        if self._thread.ident is None:
            self._thread.start()

    def took(self, run: Run, step: Step, waited_s: float) -> None:
        """The loop has this step's batch. Called by the loop."""
        self._hear(run, step, waited_s)

    def _hear(self, run: Run, step: Step | None, waited_s: float) -> None:
        if self.ours:
            self._heard.append((run, step, waited_s))
            self._wake.set()

    def close(self, wait_s: float = 0.0) -> None:
        """Ends the thread, and waits so long for it. Twice is fine; in a forked child it does nothing."""
        if os.getpid() == self._pid:
            self._end.set()
            self._wake.set()
            if wait_s and self._thread.is_alive():
                self._thread.join(wait_s)

    def _run(self) -> None:
        try:
            while not self._end.wait(_APART_S if self._settled else _APART_UNSETTLED_S):
                woken = self._wake.wait(_TICK_S)
                self._wake.clear()
                self._turn(woken)
            self._catch_up()
            self._report()
            self._planner.close()
        except Closed:
            pass  # with its client the stream is over at the node
        finally:
            self._end.set()
            self._heard.clear()

    def _turn(self, woken: bool) -> None:
        """What there is to say now. Of what goes wrong only Closed is raised: advice that fails fails nothing else."""
        try:
            if self._heard:
                self._send()
            elif not woken:
                self._report()
        except Closed:
            raise
        except Exception as error:
            known = isinstance(error, ShoalError)  # where a file lies had to be asked for: reading will say so again
            if not self._said:
                self._said = True
                log.warning("the node is not told what comes next: %s", error, exc_info=not known)
            if not known:
                self._begin_at(self._position)  # it may have come out of the stream's generator, which is over then

    def _send(self) -> None:
        """One plan: what was taken, and what comes."""
        self._catch_up()
        if self._settled >= _SETTLED_PLANS:
            self._late.clear()
            if self._steps < _QUIET_STEPS:
                return
        reading = max(self._position, self._reading())
        fill_until = reading + self._window(_AHEAD_SAMPLES)
        short = max(self._plan.count // 200, 2 * self._plan.global_batch)
        evict_until = reading + min(self._window(_AHEAD_SAMPLES_EVICTING), short)
        uses: list[Use] = []
        late = _fit(self._next_uses(list(itertools.islice(self._late, _USES_MAX // 2))), uses, 2)
        self._come(fill_until)
        ends = _fit(self._next_steps(), uses)
        more = _fit(self._more(), uses) if self._settled < _SETTLED_PLANS else []
        accepted = self._tell(uses, fill_until, evict_until)
        self._settled = self._settled + 1 if self._planner.settled else 0
        if self._planner.answered:
            # Also what was not accepted, because it cannot be filled now: its use was noted, or it comes again.
            for _ in late:
                self._late.popleft()
            self._rest += len(more)
        taken_in = sum(end <= accepted for end in ends)
        self._refused = taken_in < len(ends)
        for _ in range(taken_in):
            self._coming.popleft()
        self._look_who_heard()

    def _report(self) -> None:
        """What has not been said of waiting."""
        if self._steps:
            self._tell([], self._position, None)
            self._look_who_heard()

    def _tell(self, uses: Sequence[Use], fill_until: int, evict_until: int | None) -> int:
        """How many of these were accepted. What training waited is the planner's to say from now on."""
        waited_s, steps = self._waited_s, self._steps
        self._waited_s, self._steps = 0.0, 0
        return self._planner.send(self._position, uses, fill_until, evict_until, waited_s, steps)

    def _look_who_heard(self) -> None:
        """A node that was started again knows nothing of what was told before."""
        before, self._connection = self._connection, self._planner.connection
        if before is not None and before != self._connection:
            self._begin_at(self._position)

    def _catch_up(self) -> None:
        """Take over what the loop left here."""
        count = self._plan.count
        while self._heard:
            run, step, waited_s = self._heard.popleft()
            if step is None:
                self._run_now = run
                self._move(run.epoch * count + run.start)
                continue
            self._waited_s, self._steps = self._waited_s + waited_s, self._steps + 1
            self._position = run.epoch * count + step.stop
            self._late.extend(step.items)

    def _move(self, position: int) -> None:
        """An epoch begins: where the last one ended, or, after a resume, anywhere."""
        count = self._plan.count
        if self._stream is None or position not in (self._position, -(-self._position // count) * count):
            self._late.clear()
            self._begin_at(position)
        self._position = position

    def _begin_at(self, position: int) -> None:
        """All is to be told, of what comes from there on."""
        self._rest = self._settled = 0
        self._coming.clear()
        self._stream = self._steps_from(position)

    def _come(self, until: int) -> None:
        """Have all steps' samples in `_coming` that begin before `until`, and have not begun or been told."""
        assert self._stream is not None
        while self._coming and self._coming[0][0] < self._position:
            self._coming.popleft()
        while not self._coming or self._coming[-1][0] < until:
            begin, step = next(self._stream)
            if begin >= self._position:
                self._coming.extend((begin, item) for item in step.items)

    def _next_steps(self) -> Iterator[list[Use]]:
        """By sample in `_coming`, as many as the node may want to hear of."""
        steps = 1 if self._settled >= _SETTLED_PLANS else _AHEAD_STEPS if self._refused else None
        count = None if steps is None else steps * max(1, self._plan.batch_size)
        coming = list(itertools.islice(self._coming, count))
        for (begin, _), places in zip(coming, self._places([item for _, item in coming]), strict=True):
            yield [(*place, begin) for place in places]

    def _places(self, items: Sequence[int]) -> Iterator[list[Place]]:
        """Where these lie. A pause now and then: the loop waits for this thread while it computes."""
        for start in range(0, len(items), _AT_ONCE):
            yield from self._dataset.places(items[start : start + _AT_ONCE])
            time.sleep(_PAUSE_S)

    def _steps_from(self, position: int) -> Iterator[tuple[int, Step]]:
        """(position of the stream, our part) of every step from there on, over all epochs."""
        epoch, start = divmod(position, self._plan.count)
        while True:
            for step in self._plan.iterate(self._order(epoch), start):
                yield epoch * self._plan.count + start, step
                start = step.stop
            epoch, start = epoch + 1, 0

    def _window(self, samples: int) -> int:
        """Positions in which this rank has about so many samples, in whole steps."""
        own = max(1, self._plan.batch_size)
        return max(_AHEAD_STEPS, -(-samples // own)) * self._plan.global_batch

    def _reading(self) -> int:
        """How far workers have been sent already, in items of all epochs."""
        run = self._run_now
        with contextlib.suppress(IndexError):
            return run.epoch * self._plan.count + run.drawn[-1].stop if run is not None else 0
        return 0

    def _order(self, epoch: int) -> Order:
        name = self._source.seed, epoch
        if name not in self._orders:
            if len(self._orders) > 2:
                self._orders.clear()
            self._orders[name] = self._source.order(epoch)
        return self._orders[name]

    def _next_uses(self, items: Sequence[int]) -> Iterator[list[Use]]:
        """By sample, when its blocks are used again: the first turn of any sample that shares them."""
        ranges = [self._dataset.shares(item) for item in items]
        if not items or sum(map(len, ranges)) > _NEIGHBOURS_MAX:
            yield from ([] for _ in items)
            return
        turns = self._turns(itertools.chain.from_iterable(ranges))
        start = 0
        for shared, places in zip(ranges, self._places(items), strict=True):
            at = min(turns[start : start + len(shared)])
            start += len(shared)
            yield [(*place, at) for place in places]

    def _turns(self, items: Iterable[int]) -> list[int]:
        """The next turn of each, from where the loop is on: in this epoch or else in the next."""
        count = self._plan.count
        epoch, position = divmod(self._position, count)
        wanted = torch.tensor(list(items), dtype=torch.int64)
        now, then = self._order(epoch).positions(wanted), self._order(epoch + 1).positions(wanted)
        passed = 1 * (now < position)
        return (epoch * count + (count + then) * passed + now * (1 - passed)).tolist()

    def _more(self) -> Iterator[list[Use]]:
        """By sample, the next of those that were not told yet."""
        count = self._plan.count
        if count <= _EVERY_SAMPLE_MAX:
            yield from self._next_uses(range(self._rest, min(count, self._rest + _MORE)))


def _fit(samples: Iterable[list[Use]], uses: list[Use], share: int = 1) -> list[int]:
    """Fill this part of a plan with whole samples, but for a first one that alone is too much. Where each ends."""
    uses_max, blocks_max = _USES_MAX // share, _BLOCKS_MAX // share
    blocks = sum(count for _, _, count, _ in uses)
    ends: list[int] = []
    if len(uses) >= uses_max or blocks >= blocks_max:
        return ends
    for sample in samples:
        blocks += sum(count for _, _, count, _ in sample)
        if ends and (len(uses) + len(sample) > uses_max or blocks > blocks_max):
            break
        uses += sample[: uses_max - len(uses)]
        ends.append(len(uses))
    return ends


@atexit.register
def _close_all() -> None:
    """A thread that is inside torch while the interpreter ends would abort the process."""
    for lookahead in list(_open):
        lookahead.close(_EXIT_S)

"""Which blocks are offered to whom: copies for the other owners, repair, and handing over before a node leaves.

A store is a pull: this node only says what it has (an offer), and the other brings what it is to hold. This module
keeps what is still to be said, and what came of it. It knows keys and names of nodes; that blocks are here, who owns
them and what time it is are the caller's to say.

Blocks get into line for a target in three ways, by which the offer's reason is told:
    filled   a block came and this node is its first owner: for the other owners         `replica`
    hot      so many read it that more nodes are to have it: for all that are in line    `hot`
    walk     `begin_walk`, `walk_slice` for every block of the node, `walk_ended`:       `repair`, `drain`
             where this node is the first owner, for the others; where it is another owner,
             for the first, which may have lost it and then tells the others; where it is
             no owner, for all owners. In a drain for all owners but this node.

What becomes of a block in a line:
    queued -> offered -> held        done
                      -> refused     left to the next walk, counted
                      -> will come   a replica: done. Else asked again every ASK_AGAIN_NS until it is held;
                                     after ASK_NS_MAX it is left to the next walk, counted
                      -> no answer   queued as before; the target is left alone for a while, twice as long each time
A line holds QUEUE_MAX blocks; what does not fit is left to the next walk, counted. A walk that may take its time asks
`has_room` before each slice. Of what a target said will come, ASKED_MAX are waited for, so that asking again is cheap.

A walk that begins replaces all that is queued, as it comes past every block anyway; answers to what was offered before
count for nothing. In a drain a block is handed over when all its owners said that they hold it. That is remembered, at
100 to 150 bytes a block, from one walk of a drain to the next: a block whose owners are the same or fewer stays handed
over, and one that has new owners is offered to those only. The drain is done when a walk has ended and nothing is left.
If something is left and in no line (refused, given up, no room), `needs_walk` says so. A walk for another reason ends
the drain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import msgspec

from shoal_core import limits
from shoal_core.errors import InvariantBroken
from shoal_core.verbs.offer import HELD, QUEUED, REFUSED

QUEUE_MAX = 1 << 16
"""In one line: 256 GiB in blocks of 4 MiB, some 20 MB of memory here."""

ASKED_MAX = 4 * limits.OFFER_BLOCKS_MAX
ASK_AGAIN_NS = 2_000_000_000
ASK_NS_MAX = 600_000_000_000

PAUSE_NS_FIRST = 500_000_000
PAUSE_NS_MAX = 15_000_000_000
"""A target that is back is noticed within this, also when there is little time left to drain."""


class Offer(NamedTuple):
    """To be sent to its target, and then to be given to `answered` or to `failed`."""

    target: str
    reason: str
    blocks: list[tuple[bytes, bytes, int]]
    """Key, uid of the space, size."""


class Complete(NamedTuple):
    """Everybody whom a block was to be offered to said that they hold it."""

    key: bytes
    reason: str
    holder_count: int
    """Of a hot block: how many in its line have it now, this node among them."""
    is_owned: bool
    """False: this node is not to hold it any more, its copy is a near copy."""


class _Block(msgspec.Struct, gc=False):
    """One block on its way to one or more targets."""

    space: bytes
    size: int
    holders: tuple[str, ...]
    is_owned: bool
    waiting: int = 0
    """Lines that it stands in."""
    is_short: bool = False
    """Somebody is not going to hold it before another walk."""


class _Line:
    """What is to be said to one target for one reason. A block is in it once."""

    __slots__ = ("asked", "offered", "queued")

    def __init__(self) -> None:
        self.queued: dict[bytes, _Block] = {}
        """Oldest first. What is being offered stays until it is answered."""
        self.asked: dict[bytes, tuple[_Block, int, int]] = {}
        """Said to come: the block, when to ask again, when to give up. In the order of when to ask again."""
        self.offered: Offer | None = None
        """One at a time."""

    def __len__(self) -> int:
        return len(self.queued) + len(self.asked)

    def __contains__(self, key: bytes) -> bool:
        return key in self.queued or key in self.asked

    def pop(self, key: bytes, now_ns: int) -> tuple[_Block | None, int]:
        """The block, if it is in line, and when to give up on it."""
        if (found := self.asked.pop(key, None)) is not None:
            return found[0], found[2]
        return self.queued.pop(key, None), now_ns + ASK_NS_MAX

    def batch(self, now_ns: int) -> list[tuple[bytes, bytes, int]]:
        """What to offer now."""
        room = max(0, ASKED_MAX - len(self.asked))
        candidates = chain(self._due(now_ns), islice(self.queued.items(), room))
        return [(key, block.space, block.size) for key, block in islice(candidates, limits.OFFER_BLOCKS_MAX)]

    def _due(self, now_ns: int) -> Iterator[tuple[bytes, _Block]]:
        for key, (block, again_ns, _) in self.asked.items():
            if again_ns > now_ns:
                return
            yield key, block


class _Drain:
    """What a drain has come to, over its walks."""

    def __init__(self) -> None:
        self.blocks = self.bytes = 0
        """Come past in this walk; those who have no other owner are not counted."""
        self.handed_bytes = self.before_bytes = 0
        self.refused = self.ownerless = 0
        """In this walk: answers, and blocks that nobody else is to hold."""
        self._handed: dict[bytes, tuple[str, ...]] = {}
        """Handed over, among those come past in this walk: to whom."""
        self._before: dict[bytes, tuple[str, ...]] = {}
        """Handed over in walks before, and not come past yet in this one."""
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        """One object for equal tuples."""

    @property
    def left(self) -> int:
        return self.blocks - len(self._handed)

    def begin(self) -> None:
        """Another walk."""
        self._before |= self._handed
        self.before_bytes += self.handed_bytes
        self._handed = {}
        self.blocks = self.bytes = self.handed_bytes = self.refused = self.ownerless = 0

    def end(self) -> None:
        """Of the walk: what it did not come past has left the node."""
        self._before.clear()
        self.before_bytes = 0

    def meet(self, key: bytes, size: int, owners: tuple[str, ...]) -> list[str]:
        """The walk comes past a block with these owners; those who are not known to hold it."""
        if key in self._handed:
            return []
        if not owners:
            self.ownerless += 1
            return []
        self.blocks += 1
        self.bytes += size
        known = self._before.pop(key, ())
        if known:
            self.before_bytes -= size
        missing = [owner for owner in owners if owner not in known]
        if not missing:
            self.hand(key, size, owners)
        return missing

    def hand(self, key: bytes, size: int, owners: tuple[str, ...]) -> None:
        """All of them hold it."""
        self._handed[key] = self._names.setdefault(owners, owners)
        self.handed_bytes += size

    def progress(self) -> dict[str, int]:
        handed, handed_bytes = len(self._handed) + len(self._before), self.handed_bytes + self.before_bytes
        return {
            "blocks": self.blocks + len(self._before),
            "bytes": self.bytes + self.before_bytes,
            "handed_over_blocks": handed,
            "handed_over_bytes": handed_bytes,
            "left_blocks": self.left,
            "left_bytes": self.bytes - self.handed_bytes,
            "refused": self.refused,
            "ownerless_blocks": self.ownerless,
        }


class Handover:
    """All lines of one node. Guarded by the node's lock."""

    def __init__(self) -> None:
        self.overflowed = 0
        """Blocks that were left out because a line was full; once for each target, as the two below."""
        self.refused = 0
        self.late = 0
        """Said to come, and not held within ASK_NS_MAX."""
        self._lines: dict[tuple[str, str], _Line] = {}
        """By target and reason; whose turn it is first. None is empty."""
        self._pauses: dict[str, tuple[int, int]] = {}
        """Targets that did not answer: how long they are left alone, and until when."""
        self._walk_reason = "repair"
        self._is_walking = False
        self._drain: _Drain | None = None

    @property
    def queued(self) -> int:
        """Blocks in lines, once for each target."""
        return sum(map(len, self._lines.values()))

    @property
    def left_out(self) -> dict[str, int]:
        """Blocks that only another walk brings to a target, so far, by reason."""
        return {"no room in line": self.overflowed, "refused": self.refused, "not in time": self.late}

    # Into line

    def filled(self, key: bytes, space: bytes, size: int, owners: Sequence[str], me: str) -> None:
        """The block has just come."""
        if owners and owners[0] == me:
            self._queue("replica", key, _Block(space, size, tuple(owners), True), owners[1:])

    def hot(self, key: bytes, space: bytes, size: int, line: Sequence[str], me: str) -> None:
        """These nodes are to have a block that is here; `answered` tells when they do."""
        others = [node_id for node_id in line if node_id != me]
        self._queue("hot", key, _Block(space, size, tuple(line), me in line), others)

    def begin_walk(self, reason: str) -> None:
        """From now on slices are of a new walk: "view", "repair" and "scrub" are the same here, "drain" is not."""
        self._lines.clear()
        self._pauses.clear()
        self._is_walking = True
        self._walk_reason = "drain" if reason == "drain" else "repair"
        if reason != "drain":
            self._drain = None
        elif self._drain is None:
            self._drain = _Drain()
        else:
            self._drain.begin()

    def has_room(self, block_count: int) -> bool:
        """Whether every line can take a slice of so many blocks."""
        return all(
            len(line) + block_count <= QUEUE_MAX
            for (_, reason), line in self._lines.items()
            if reason == self._walk_reason
        )

    def walk_slice(self, blocks: Iterable[tuple[bytes, bytes, int, Sequence[str]]], me: str) -> None:
        """Key, uid of the space, size and present owners, first owner first, of some of the blocks of this node."""
        if not self._is_walking:
            raise InvariantBroken("a slice of no walk")
        for key, space, size, owners in blocks:
            others = tuple(owner for owner in owners if owner != me)
            if any(key in self._lines.get((owner, self._walk_reason), ()) for owner in others):
                continue  # come past twice
            is_owned = len(others) < len(owners)
            missing: Sequence[str] = others if not is_owned or owners[0] == me else others[:1]
            if self._drain is not None:
                missing = self._drain.meet(key, size, others)
            if missing:
                self._queue(self._walk_reason, key, _Block(space, size, others, is_owned), missing)

    def walk_ended(self) -> None:
        """The walk came past everything."""
        if self._is_walking and self._drain is not None:
            self._drain.end()
        self._is_walking = False

    def gone(self, key: bytes) -> None:
        """The block is here no more: it is not offered."""
        for name, line in list(self._lines.items()):
            block, _ = line.pop(key, 0)
            if block is not None and not block.is_short:
                block.is_short = True
                if self._drain is not None and name[1] == "drain":
                    self._drain.blocks -= 1
                    self._drain.bytes -= block.size
            self._leave(name, line)

    def _queue(self, reason: str, key: bytes, block: _Block, targets: Iterable[str]) -> None:
        for target in targets:
            line = self._lines.setdefault((target, reason), _Line())
            line.pop(key, 0)  # one that stood here, and never is complete by that
            if len(line) >= QUEUE_MAX:
                self.overflowed += 1
                block.is_short = True
            else:
                line.queued[key] = block
                block.waiting += 1

    # Offers

    def next_offer(self, now_ns: int, target: str | None = None) -> Offer | None:
        """The next offer that may go, to that target or to any, in turns. One at a time for a target and reason."""
        for name, line in self._lines.items():
            if line.offered is not None or (target is not None and name[0] != target):
                continue
            if name[0] in self._pauses and now_ns < self._pauses[name[0]][1]:
                continue
            if blocks := line.batch(now_ns):
                self._lines[name] = self._lines.pop(name)
                line.offered = Offer(*name, blocks)
                return line.offered
        return None

    def answered(self, offer: Offer, states: bytes, now_ns: int) -> list[Complete]:
        """What the target said to each block; one that it did not speak of is refused. What is complete by that."""
        name = offer.target, offer.reason
        line = self._lines.get(name)
        if line is None or line.offered is not offer:
            return []
        line.offered = None
        self._pauses.pop(offer.target, None)
        found: list[Complete] = []
        states = states.ljust(len(offer.blocks), bytes([REFUSED]))
        for (key, _, _), state in zip(offer.blocks, states, strict=False):
            block, end_ns = line.pop(key, now_ns)
            if block is None:
                continue
            if state == QUEUED and offer.reason != "replica" and now_ns < end_ns:
                line.asked[key] = block, now_ns + ASK_AGAIN_NS, end_ns
                continue
            block.waiting -= 1
            if state == QUEUED:
                self.late += offer.reason != "replica"
            elif state != HELD:
                self.refused += 1
                if self._drain is not None and offer.reason == "drain":
                    self._drain.refused += 1
            block.is_short = block.is_short or state != HELD
            if not block.waiting and not block.is_short:
                found.append(Complete(key, offer.reason, len(block.holders), block.is_owned))
                if self._drain is not None and offer.reason == "drain":
                    self._drain.hand(key, block.size, block.holders)
        self._leave(name, line)
        return found

    def failed(self, offer: Offer, now_ns: int) -> None:
        """The target did not answer: everything is offered again, later."""
        line = self._lines.get((offer.target, offer.reason))
        if line is None or line.offered is not offer:
            return
        line.offered = None
        pause_ns = min(max(2 * self._pauses.get(offer.target, (0, 0))[0], PAUSE_NS_FIRST), PAUSE_NS_MAX)
        self._pauses[offer.target] = pause_ns, now_ns + pause_ns
        self._leave((offer.target, offer.reason), line)

    def _leave(self, name: tuple[str, str], line: _Line) -> None:
        if not len(line) and line.offered is None:
            del self._lines[name]

    # How far a drain is

    @property
    def is_done(self) -> bool:
        """Whether every block of a drain is handed over."""
        return self._drain is not None and not self._is_walking and not self._drain.left

    @property
    def needs_walk(self) -> bool:
        """Whether a drain has left blocks out, and does nothing more without another walk."""
        waits = any(reason == "drain" for _, reason in self._lines)
        return self._drain is not None and not self._is_walking and bool(self._drain.left) and not waits

    def progress(self) -> dict[str, int | bool]:
        """Of the drain, as plain data; all 0 where there is none. What is `left` was not said to be held by all."""
        sums = (self._drain or _Drain()).progress()
        return {"draining": self._drain is not None, "walking": self._is_walking, **sums, "done": self.is_done}

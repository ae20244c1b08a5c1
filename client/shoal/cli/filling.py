"""Warming a cluster: every block at all its owners, and then looked at there.

One byte of each block is asked of its first owner, past the node at home: that owner brings the block, from the origin
once for the whole cluster, and passes it on to the others. What an owner holds already is skipped, so a warm that was
interrupted goes on where it was. In a second pass every copy is hashed where it lies; who has none, or a bad one, is
asked for the block himself. A block counts when as many owners have it as its data set or the view wants.

Owners that do not answer are stood in for by the next in line; where there are too few of those, it is said. All goes
a part at a time: the largest data set needs no more memory here than its listing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shoal import placing
from shoal.cli import progress
from shoal.cli.pace import Pace, Values, capacity
from shoal_core import limits
from shoal_core.errors import BadRequest, DeadlineExceeded, Forbidden, NotFound, ObjectChanged
from shoal_core.verbs import holding, stat

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.members import Members
    from shoal.objects import ObjectInfo
    from shoal.placing import Block

ROUNDS_MAX = 3
"""Times that a copy which is not there is asked for and looked at again."""
DEADLINE_S = 120.0
LOOK_S = 3600.0
"""For one part of all blocks; each node has its own shorter time for each request."""
ANSWER_S = 5.0
NODES_AT_ONCE = 8
"""A batch is spread over the nodes, so it may be so many times as large as one node's share."""

_FINAL = (NotFound, Forbidden, ObjectChanged, BadRequest)
"""To ask again would bring nothing else."""


class Target(NamedTuple):
    """A node is to have a block."""

    block: Block
    node_id: str
    share_bytes: int
    """What it counts for, of the whole."""


class Filling:
    """One warm."""

    def __init__(self, client: Client, members: Members, infos: list[ObjectInfo], concurrency: int) -> None:
        self._client = client
        self._members = members
        self._infos = infos
        self._concurrency = concurrency
        self.copies = max((self._wanted(info) for info in infos), default=1)
        self.pace = Pace(self.numbers, infos, concurrency, self.copies)
        self.cold_bytes = 0
        """Of blocks that were not at all their owners."""
        self.corrupt = 0
        self.missing: dict[str, str] = {}
        """Why, by URL."""
        self._failed: dict[str, str] = {}
        """URLs that cannot be had, whoever asks."""
        self._trouble: dict[str, str] = {}
        """What went wrong last, by URL; it may have gone well since."""

    def numbers(self) -> list[Values]:
        """What each node that answers says of itself."""
        replies = self._members.ask_all(stat.KIND, stat.Request(), time.monotonic() + ANSWER_S)
        return [reply.values for reply in replies.values()]

    @property
    def capacity_bytes(self) -> int:
        return sum(capacity(values) for values in self.numbers())

    def run(self, *, shown: bool) -> None:
        """Fill, and then look."""
        total = sum(info.size for info in self._infos)
        with progress.bar("fill", total, shown=shown) as bar:
            for part in placing.parts(placing.all_blocks(self._infos)):
                self._fill(placing.look(self._members, part, time.monotonic() + LOOK_S), bar.advance)
        with progress.bar("verify", total, shown=shown) as bar:
            for part in placing.parts(placing.all_blocks(self._infos)):
                self._verify(part)
                bar.advance(sum(_size(wanted) for wanted in part))

    def _wanted(self, info: ObjectInfo) -> int:
        with self._members.router_lock:
            router = self._members.router
            return router.replicas(info.replica_count)

    # Filling

    def _fill(self, blocks: list[Block], advance: Callable[[int], None]) -> None:
        targets: list[Target] = []
        for block in blocks:
            if not block.lacking:
                advance(block.size)
                continue
            self.cold_bytes += block.size
            targets += _targets(block)
        self._touch_all(targets, advance)

    def _touch_all(self, targets: Sequence[Target], advance: Callable[[int], None]) -> None:
        """Batches, several at once, no faster than the nodes' disks; what fails for good is noted."""
        at_once = self.pace.batch_bytes * min(NODES_AT_ONCE, max(1, len(self._members.answering)))
        self.pace.work(_batches(targets, at_once), lambda batch: self._touch(batch, advance), self._concurrency)

    def _touch(self, batch: list[Target], advance: Callable[[int], None]) -> None:
        left = batch
        while left:
            wanted = [(target.block.info, target.block.number, target.node_id) for target in left]
            part = max(1, self.pace.batch_bytes // max(target.block.size for target in left))
            errors = self._client._routed.touch(wanted, min(part, limits.PART_ITEMS), time.monotonic() + DEADLINE_S)
            late: list[Target] = []
            for target, error in zip(left, errors, strict=True):
                if isinstance(error, DeadlineExceeded):
                    late.append(target)
                    continue
                if error is not None:
                    told = self._failed if isinstance(error, _FINAL) else self._trouble
                    told[target.block.info.url] = str(error)
                advance(target.share_bytes)
            if len(late) == len(left):  # a slow origin gets more time as long as it delivers something
                for target in late:
                    self._trouble[target.block.info.url] = f"nothing arrived within {DEADLINE_S:.0f} s"
                    advance(target.share_bytes)
                return
            left = late

    # Looking

    def _verify(self, part: Sequence[placing.Wanted]) -> None:
        left = list(part)
        for rounds_left in reversed(range(ROUNDS_MAX)):
            blocks = placing.look(self._members, left, time.monotonic() + LOOK_S, verify=True)
            self.corrupt += sum(bool(state & holding.CORRUPT) for block in blocks for state in block.holders.values())
            blocks = [block for block in blocks if block.lacking or len(block.acting) < len(block.owners)]
            targets = [target for block in blocks if block.info.url not in self._failed for target in _targets(block)]
            if not rounds_left or not targets or not self.pace.fits:
                for block in blocks:
                    self._is_missing(block)
                return
            self._touch_all(targets, lambda _: None)
            left = [(block.info, block.number) for block in blocks]

    def _is_missing(self, block: Block) -> None:
        url = block.info.url
        self.missing.setdefault(url, self._failed.get(url) or self._trouble.get(url) or self._why(block))

    def _why(self, block: Block) -> str:
        silent = [node_id for node_id in block.owners if node_id in self._members.silent]
        if len(block.acting) < len(block.owners):
            return f"block {block.number}: {', '.join(silent)} cannot be asked, and no other node stands in"
        node_id = block.lacking[0]
        ending = block.endings.get(node_id)
        if ending is None:
            return f"block {block.number}: not at {node_id}"
        return f"block {block.number}: {ending.reason} at {node_id} {ending.age_s} s ago"


def _targets(block: Block) -> list[Target]:
    """The first owner brings it and passes it on to the others, who are asked only where somebody has it already."""
    node_ids = block.lacking if block.good_holders else block.lacking[:1]
    return [Target(block, node_id, block.size // len(node_ids)) for node_id in node_ids]


def _size(wanted: placing.Wanted) -> int:
    info, number = wanted
    return min(info.block_size_bytes, info.size - number * info.block_size_bytes)


def _batches(targets: Sequence[Target], bytes_max: int) -> list[list[Target]]:
    batches: list[list[Target]] = []
    total = 0
    for target in targets:
        size = target.block.size
        if not batches or total + size > bytes_max or len(batches[-1]) >= limits.BATCH_ITEMS_MAX:
            batches.append([])
            total = 0
        batches[-1].append(target)
        total += size
    return batches

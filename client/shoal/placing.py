"""Where blocks belong and where they are: owners by placement, holders by asking.

The owners of a block follow from its key and the view alone. Who holds it, in memory or on disk, is asked of the nodes
with the verb `holding`, in batches, of all nodes concerned at once; who does not answer is in `Members.silent`, and
the next in line count as owners in its place, as they do for readers. Without a cluster the one node owns everything.

A look is as good as the moment it was taken in, and costs some 500 bytes a block: callers go through large objects a
part at a time (`parts`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from shoal.members import Members
from shoal.objects import ObjectInfo
from shoal_core import keys, limits, view
from shoal_core.router import STAND_INS
from shoal_core.verbs import holding

PART_BLOCKS = 4 * limits.BATCH_ITEMS_MAX
"""Blocks looked at together: a few full requests to each node."""

VERIFY_BYTES = 256 * limits.MIB
"""Hashed for one request: a tenth of a second in memory, some seconds from a slow disk."""

_ANSWER_S = 10.0
_VERIFY_S = 120.0
"""For one request: who takes longer counts as silent."""

Wanted = tuple[ObjectInfo, int]
"""An object and the number of one of its blocks."""


class Block(msgspec.Struct):
    """One block, where it belongs and where it was found."""

    info: ObjectInfo
    number: int
    key: bytes
    owners: tuple[str, ...]
    """Ids by placement, first owner first, whether they answer or not."""
    acting: tuple[str, ...]
    """Ids of those that are to hold it now: the next in line for each owner that does not answer."""
    holders: dict[str, int] = {}
    """Node id -> bits of holding.DRAM, DISK, NEAR, CORRUPT. A corrupt copy is dropped by its node."""
    endings: dict[str, holding.Ending] = {}
    """By the id of a node that does not hold it: why, as far as that is remembered there."""

    @property
    def size(self) -> int:
        info = self.info
        return min(info.block_size_bytes, info.size - self.number * info.block_size_bytes)

    def is_held_by(self, node_id: str) -> bool:
        """A good copy, in whichever tier."""
        state = self.holders.get(node_id, 0)
        return bool(state & (holding.DRAM | holding.DISK)) and not state & holding.CORRUPT

    @property
    def good_holders(self) -> list[str]:
        return [node_id for node_id in self.holders if self.is_held_by(node_id)]

    @property
    def ranked_holders(self) -> list[tuple[str, int]]:
        """Owners first, in line."""
        line = (*self.owners, *self.acting)
        rank = {node_id: place for place, node_id in reversed(list(enumerate(line)))}
        return sorted(self.holders.items(), key=lambda item: (rank.get(item[0], len(line)), item[0]))

    @property
    def lacking(self) -> list[str]:
        """Who is to hold it now and does not."""
        return [node_id for node_id in self.acting if not self.is_held_by(node_id)]


def block_count(info: ObjectInfo) -> int:
    return keys.block_count(info.size, info.block_size_bytes)


def all_blocks(infos: Iterable[ObjectInfo]) -> Iterator[Wanted]:
    """Every block of every object, in order."""
    return ((info, number) for info in infos for number in range(block_count(info)))


def parts(wanted: Iterable[Wanted], count: int = PART_BLOCKS) -> Iterator[list[Wanted]]:
    """As many at a time as one look is for."""
    part: list[Wanted] = []
    for each in wanted:
        part.append(each)
        if len(part) >= count:
            yield part
            part = []
    if part:
        yield part


def place(members: Members, wanted: Sequence[Wanted]) -> list[Block]:
    """Where these blocks belong, in order. Nobody is asked."""
    if members.alone:
        only = (members.nodes[0].id,)
        return [Block(info, number, keys.block_key(info.fingerprint, number), only, only) for info, number in wanted]
    with members.router_lock:
        router = members.router
        nodes = router.placement.view.nodes
        found: list[Block] = []
        for info, number in wanted:
            key = keys.block_key(info.fingerprint, number)
            count = router.replicas(info.replica_count)
            line = [nodes[place].id for place in router.placement.owners_of(key)[: count + STAND_INS]]
            acting = tuple(node_id for node_id in line if node_id not in members.silent)[:count]
            found.append(Block(info, number, key, tuple(line[:count]), acting))
    return found


def look(members: Members, wanted: Sequence[Wanted], deadline: float, *, verify: bool = False) -> list[Block]:
    """Where these blocks belong, and which of those that are to hold them do. `verify` has each copy hashed."""
    blocks = place(members, wanted)
    asked: dict[str, list[Block]] = {}
    for block in blocks:
        for node_id in dict.fromkeys((*block.owners, *block.acting)):
            asked.setdefault(node_id, []).append(block)
    silent_before = len(members.silent)
    ask(members, asked, deadline, verify=verify)
    if len(members.silent) > silent_before:  # somebody stopped meanwhile: others stand in, and were not asked yet
        asked.clear()
        for block, again in zip(blocks, place(members, wanted), strict=True):
            for node_id in set(again.acting) - set(block.acting):
                asked.setdefault(node_id, []).append(block)
            block.acting = again.acting
        ask(members, asked, deadline, verify=verify)
    return blocks


def ask_everybody(members: Members, blocks: Sequence[Block], deadline: float) -> None:
    """Ask all the other nodes as well: for near copies, copies of hot blocks, and what was not handed over yet."""
    asked: dict[str, list[Block]] = {}
    for node_id in members.answering:
        asked[node_id] = [block for block in blocks if node_id not in block.owners and node_id not in block.acting]
    ask(members, asked, deadline)


def ask(members: Members, asked: dict[str, list[Block]], deadline: float, *, verify: bool = False) -> None:
    """Ask each node for these blocks; what it says is put into them."""

    def one(node: view.Node) -> None:
        for batch in _batches(asked[node.id], verify):
            request = holding.Request([block.key for block in batch], verify)
            until = min(deadline, time.monotonic() + (_VERIFY_S if verify else _ANSWER_S))
            reply: holding.Reply = members.call(node, holding.KIND, request, until)
            for block, state in zip(batch, reply.states, strict=True):
                if state:
                    block.holders[node.id] = state
            for ending in reply.endings:
                batch[ending.key].endings[node.id] = ending

    members.each([node_id for node_id, blocks in asked.items() if blocks], one)


def _batches(blocks: list[Block], verify: bool) -> Iterator[list[Block]]:
    batch: list[Block] = []
    size = 0
    for block in blocks:
        if batch and (len(batch) >= limits.BATCH_ITEMS_MAX or (verify and size + block.size > VERIFY_BYTES)):
            yield batch
            batch, size = [], 0
        batch.append(block)
        size += block.size
    if batch:
        yield batch

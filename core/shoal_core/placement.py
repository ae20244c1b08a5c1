"""Which nodes own a key: weighted rendezvous hashing over 65,536 partitions.

A key belongs to a partition by one fixed hash. For each partition every node draws a number from a hash of the
partition and its own id, scaled so that it wins in proportion to its capacity; the highest owns the partition. So a
node that comes takes its share from all others, one that goes leaves its share to all others, and nothing else moves.
Further owners are the highest of those in another zone, else in another rack, else any; the first of them does not
depend on how many there are. An unknown zone or rack counts as one more name.

Owners are computed when a partition is first asked for and kept in a flat array, because pure Python needs
about 0.1 ms for one partition of a thousand nodes. The draw uses the C library's logarithm: where two libraries
differ in its last bit, two hosts may differ on a partition in many millions, which costs a hop and nothing else.
"""

import math
import struct
from array import array
from itertools import groupby, repeat
from typing import NamedTuple

import xxhash

from shoal_core import view

PARTITION_COUNT = 65_536
"""Enough that a node of a thousand owns about 65, so shares are even; few enough to work through one by one."""

_UNKNOWN = 0xFFFF
_NOBODY = 0xFFFE


def partition(key: bytes) -> int:
    """The partition of a key; fixed for all versions of Shoal."""
    return xxhash.xxh3_64_intdigest(key) & (PARTITION_COUNT - 1)


class _Group(NamedTuple):
    """Nodes that differ in nothing but their id: of them the highest draw wins, so one logarithm will do for all."""

    zone: str
    rack: str
    weight: float
    first: int
    end: int


def _score(draw: int, weight: float) -> float:
    # log(u) / weight is highest for a node with probability weight / sum of weights; u is in (0, 1].
    return math.log2((draw + 1) * 2.0**-64) / weight


class Placement:
    """Owners by partition, for one view and one number of replicas. 128 KiB per replica."""

    def __init__(self, of: view.View, replica_count: int = 1) -> None:
        if not 1 <= replica_count <= view.REPLICA_COUNT_MAX or len(of.nodes) >= _NOBODY:
            raise ValueError(f"{replica_count} replicas on {len(of.nodes)} nodes: at most {view.REPLICA_COUNT_MAX}")
        self.view = of
        self.replica_count = replica_count
        able = [place for place, node in enumerate(of.nodes) if node.status == "ready" and node.capacity_bytes > 0]

        def kind(place: int) -> tuple[str, str, int]:
            node = of.nodes[place]
            return node.zone, node.rack, node.capacity_bytes

        able.sort(key=kind)
        total = sum(of.nodes[place].capacity_bytes for place in able)
        self._places = able
        self._seeds = [xxhash.xxh3_64_intdigest(of.nodes[place].id.encode()) for place in able]
        self._groups: list[_Group] = []
        first = 0
        for (zone, rack, capacity), members in groupby(able, kind):
            end = first + len(list(members))
            self._groups.append(_Group(zone, rack, capacity / total, first, end))
            first = end
        self._known = array("H", [_UNKNOWN]) * (PARTITION_COUNT * replica_count)

    def owners(self, partition: int) -> tuple[int, ...]:
        """Positions in the view's nodes, first owner first; fewer than asked for where there are fewer nodes."""
        start = partition * self.replica_count
        known = self._known
        if known[start] == _UNKNOWN:
            chosen = self._choose(partition)
            for offset in range(self.replica_count):
                known[start + offset] = chosen[offset] if offset < len(chosen) else _NOBODY
        return tuple(place for place in known[start : start + self.replica_count] if place != _NOBODY)

    def owners_of(self, key: bytes) -> tuple[int, ...]:
        return self.owners(partition(key))

    def _choose(self, partition: int) -> list[int]:
        draws = list(map(xxhash.xxh3_64_intdigest, repeat(struct.pack("<Q", partition)), self._seeds))
        tops = [max(draws[group.first : group.end]) for group in self._groups]
        scores = [_score(top, group.weight) for top, group in zip(tops, self._groups, strict=True)]
        chosen: list[int] = []
        winners: list[_Group] = []
        while len(chosen) < min(self.replica_count, len(draws)):
            zones = {group.zone for group in winners}
            racks = {(group.zone, group.rack) for group in winners}
            others = [number for number, group in enumerate(self._groups) if group.zone not in zones]
            others = others or [
                number for number, group in enumerate(self._groups) if (group.zone, group.rack) not in racks
            ]
            winner = max(others or range(len(scores)), key=scores.__getitem__)
            group = self._groups[winner]
            winners.append(group)
            place = draws.index(tops[winner], group.first)
            chosen.append(self._places[place])
            draws[place] = -1
            tops[winner] = max(draws[group.first : group.end])
            scores[winner] = _score(tops[winner], group.weight) if tops[winner] >= 0 else -math.inf
        return chosen

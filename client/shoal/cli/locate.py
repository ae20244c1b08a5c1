"""shoal locate: where the blocks of an object belong, and which nodes hold them, in which tier.

Owners follow from the view; holders are asked. Of an object of many blocks a summary by node is shown, and the blocks
that are asked for. Copies on nodes that own nothing of it (near copies, copies of hot blocks) are looked for with
--all, because every node has to be asked for every block.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from shoal import placing
from shoal.cli import connection, output
from shoal.members import DISTANCES
from shoal_core import limits, units
from shoal_core.errors import BadRequest
from shoal_core.verbs import holding

if TYPE_CHECKING:
    from shoal.members import Members
    from shoal.objects import ObjectInfo
    from shoal.placing import Block

BLOCKS_SHOWN = 24
"""From here on a summary says more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="an object")
    parser.add_argument("--blocks", metavar="A-B", type=blocks, help="these blocks, one by one: 7, 0-99, 100-")
    parser.add_argument("--all", action="store_true", help="ask every node, not the owners alone")
    parser.add_argument("--json", action="store_true", help="one JSON document per block")
    connection.add_arguments(parser)


def blocks(text: str) -> tuple[int, int | None]:
    """(first, last), both included; None: to the end."""
    first, dash, last = text.partition("-")
    if not all(part.isascii() and part.isdigit() for part in ((first, last) if last else (first,))):
        raise argparse.ArgumentTypeError(f"{text!r} names no blocks: 7, 0-99 or 100-")
    found = int(first), (int(last) if last else None if dash else int(first))
    if found[1] is not None and found[1] < found[0]:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return found


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments) as client:
        info = client.info(arguments.url)
        members = client.members()
        count = placing.block_count(info)
        first, last = arguments.blocks or (0, None)
        numbers = range(first, count if last is None else min(last + 1, count))
        if arguments.blocks and not numbers:
            raise BadRequest(f"{info.url}: has {count} blocks, and none from {first} on")
        summary = Summary(members)
        shown: list[Block] = []
        for part in placing.parts((info, number) for number in numbers):
            found = look(members, part, everybody=arguments.all)
            if arguments.json:
                for block in found:
                    output.json_line(as_values(members, block))
                continue
            summary.add(found)
            if arguments.blocks or len(numbers) <= BLOCKS_SHOWN:
                shown += found
    if not arguments.json:
        if shown:
            _print(members, shown)
        else:
            summary.show(info)
    for node_id, reason in members.silent.items():
        output.note(f"shoal: {node_id} does not answer: {reason}")
    return 0


def look(members: Members, part: list[placing.Wanted], *, everybody: bool) -> list[Block]:
    """Ask the owners, or everybody."""
    deadline = time.monotonic() + limits.DEADLINE_S_DEFAULT
    found = placing.look(members, part, deadline)
    if everybody:
        placing.ask_everybody(members, found, deadline)
    return found


def tiers(state: int) -> list[str]:
    """Where a copy lies, for JSON and for people."""
    bits = (("dram", holding.DRAM), ("disk", holding.DISK), ("near", holding.NEAR), ("corrupt", holding.CORRUPT))
    return [name for name, bit in bits if state & bit]


def as_values(members: Members, block: Block) -> dict[str, Any]:
    """Plain data."""
    owners: list[dict[str, Any]] = []
    for node_id in block.owners:
        node = members.node(node_id)
        owners.append(
            {
                "id": node_id,
                "zone": node.zone if node is not None else "",
                "rack": node.rack if node is not None else "",
                "distance": DISTANCES[members.distance(node)] if node is not None else None,
                "answers": node_id not in members.silent,
            }
        )
    return {
        "url": block.info.url,
        "block": block.number,
        "key": block.key.hex(),
        "size": block.size,
        "owners": owners,
        "acting": list(block.acting),
        "holders": {node_id: tiers(state) for node_id, state in block.ranked_holders},
        "endings": {
            node_id: {"reason": ending.reason, "age_s": ending.age_s} for node_id, ending in block.endings.items()
        },
    }


def _print(members: Members, found: list[Block]) -> None:
    output.columns(
        ("BLOCK", "SIZE", "OWNERS", "HELD BY"),
        [
            (
                units.number(block.number),
                units.size(block.size),
                ", ".join(_owner(members, node_id) for node_id in block.owners) or "nobody",
                ", ".join(f"{output.printable(node_id)} {shown(state)}" for node_id, state in block.ranked_holders)
                or "nobody",
            )
            for block in found
        ],
        left=frozenset({"OWNERS"}),
    )


def shown(state: int) -> str:
    names = tiers(state)
    where = "+".join({"dram": "DRAM"}.get(name, name) for name in names if name in ("dram", "disk"))
    return " ".join([where, *(f"({name})" for name in names if name in ("near", "corrupt"))])


def _owner(members: Members, node_id: str) -> str:
    """node-1 [west/r1, same rack]."""
    node = members.node(node_id)
    if node is None:
        return output.printable(node_id)
    place = "/".join(output.printable(part) for part in (node.zone, node.rack) if part)
    details = [part for part in (place, DISTANCES[members.distance(node)]) if part]
    if node_id in members.silent:
        details.append("no answer")
    return f"{output.printable(node_id)} [{', '.join(details)}]"


class Summary:
    """Blocks and bytes by node, and by how many of its owners hold a block."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._owned: Counter[str] = Counter()
        self._held: dict[str, Counter[str]] = {}
        self._bytes: Counter[str] = Counter()
        self._whole = self._part = self._nowhere = 0

    def add(self, found: list[Block]) -> None:
        for block in found:
            self._owned.update(block.owners)
            for node_id, state in block.holders.items():
                self._held.setdefault(node_id, Counter()).update(tiers(state))
                self._bytes[node_id] += block.size
            if not block.good_holders:
                self._nowhere += 1
            elif block.lacking:
                self._part += 1
            else:
                self._whole += 1

    def show(self, info: ObjectInfo) -> None:
        total = self._whole + self._part + self._nowhere
        output.fields(
            [
                ("url", output.printable(info.url)),
                ("blocks", f"{units.number(total)} of {units.size(info.block_size_bytes)}"),
                ("held by all owners", self._share(self._whole, total)),
                ("held by some", self._share(self._part, total)),
                ("held by none", self._share(self._nowhere, total)),
            ]
        )
        print()
        output.columns(
            ("NODE", "OWNS", "DRAM", "DISK", "NEAR", "BYTES", "DISTANCE"),
            [
                (
                    output.printable(node.id),
                    units.number(self._owned[node.id]),
                    *(units.number(self._held.get(node.id, Counter())[tier]) for tier in ("dram", "disk", "near")),
                    units.size(self._bytes[node.id]),
                    DISTANCES[self._members.distance(node)],
                )
                for node in self._members.nodes
                if self._owned[node.id] or node.id in self._held
            ],
            left=frozenset({"NODE"}),
        )

    @staticmethod
    def _share(count: int, total: int) -> str:
        return f"{units.number(count)} ({units.percent(count, total)})" if count else "0"

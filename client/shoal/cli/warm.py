"""shoal warm: make objects resident, then look whether they are.

Of each block that is not cached, one byte is read: the node fills the whole block, errors come back to us, and next to
nothing crosses the door. Blocks are asked for in batches, several at once; the node bounds what it asks of the origin.
Where the objects are larger than DRAM, each block must reach the disk tier before it is pushed out, so batches wait
while the node's queue of disk writes is long (`pace`). At the end every object is inspected, and what is missing tried
again where it could fit; then the command says what is missing and why, and fails. In a cluster every owner of every
block is filled, and looked at (`filling`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.cli import connection, objects, output, progress
from shoal.cli.filling import Filling
from shoal.cli.pace import BATCH_BYTES, Pace, Values, capacity
from shoal_core import units
from shoal_core.errors import DeadlineExceeded, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.members import Members
    from shoal.objects import ObjectInfo

BATCH_BLOCKS_MAX = 1024
CONCURRENCY_DEFAULT = 4
DEADLINE_S = 120.0
ROUNDS_MAX = 4
ERRORS_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("urls", metavar="URL", nargs="+", help="an object, or what lies above some")
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=positive,
        default=CONCURRENCY_DEFAULT,
        help=f"batches of {units.size(BATCH_BYTES)} in flight at most (default {CONCURRENCY_DEFAULT});"
        " each node's fill.concurrency bounds what reaches the origin",
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON document")
    connection.add_arguments(parser)


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 256")
    return int(text)


class Block(NamedTuple):
    info: ObjectInfo
    """Of the version that was listed; a URL alone would be asked for again at the origin after a minute."""
    offset: int
    size: int


Failures = dict[str, str]
"""What went wrong, by URL."""


def run(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    with connection.open_client(arguments) as client:
        infos = objects.all_below(client, arguments.urls)
        members = client.members()
        shown = not arguments.json
        if members.alone:
            result = _one_node(client, infos, arguments.concurrency, shown=shown)
        else:
            result = _cluster(client, members, infos, arguments.concurrency, shown=shown)
        result |= {
            "objects": len(infos),
            "bytes": sum(info.size for info in infos),
            "seconds": time.monotonic() - started,
            "missing_objects": len(result["missing"]),
        }
    if arguments.json:
        output.json_line(result)
    else:
        _report(result)
    return 1 if result["missing"] else 0


def _one_node(client: Client, infos: list[ObjectInfo], concurrency: int, *, shown: bool) -> dict[str, Any]:
    missing = _missing(client, infos)
    cold_bytes = sum(info.size for info in missing)
    pace = Pace(lambda: [client.node_stats()], infos, concurrency)
    if missing and not pace.fits and shown:
        output.note(f"shoal: {_too_large(client.node_stats(), infos)}; what comes first will be evicted again")
    failures: Failures = {}
    for _ in range(ROUNDS_MAX):
        if not missing or failures:
            break
        with progress.bar("warm", sum(info.size for info in missing), shown=shown) as bar:
            _fill(client, missing, concurrency, pace, failures, bar.advance)
        missing = _missing(client, infos)
        if not pace.fits:
            break
    return {"cold_bytes": cold_bytes, "missing": _reasons(client, missing, infos, failures) if missing else {}}


def _cluster(
    client: Client, members: Members, infos: list[ObjectInfo], concurrency: int, *, shown: bool
) -> dict[str, Any]:
    filling = Filling(client, members, infos, concurrency)
    if not filling.pace.fits and shown:
        copies = "" if filling.copies == 1 else f", {filling.copies} times"
        output.note(
            f"shoal: {units.size(sum(info.size for info in infos))} asked for{copies}, and all nodes together hold"
            f" {units.size(filling.capacity_bytes)}; what comes first will be evicted again"
        )
    filling.run(shown=shown)
    for node_id, reason in members.silent.items():
        output.note(f"shoal: {node_id} does not answer, others stand in for it: {reason}")
    return {
        "cold_bytes": filling.cold_bytes,
        "missing": filling.missing,
        "copies": filling.copies,
        "corrupt": filling.corrupt,
        "unanswered": members.silent,
    }


def _missing(client: Client, infos: list[ObjectInfo]) -> list[ObjectInfo]:
    return [info for info, found in objects.residency(client, infos) if not objects.is_resident(info, found)]


def batches(infos: list[ObjectInfo], bytes_max: int) -> Iterator[list[Block]]:
    """All blocks in order, a batch at a time: many small objects, or a few blocks of a large one."""
    batch: list[Block] = []
    total = 0
    for info in infos:
        for offset in range(0, info.size, info.block_size_bytes):
            size = min(info.block_size_bytes, info.size - offset)
            if batch and (total + size > bytes_max or len(batch) >= BATCH_BLOCKS_MAX):
                yield batch
                batch, total = [], 0
            batch.append(Block(info, offset, size))
            total += size
    if batch:
        yield batch


def _fill(
    client: Client,
    infos: list[ObjectInfo],
    concurrency: int,
    pace: Pace,
    failures: Failures,
    advance: Callable[[int], None],
) -> None:
    """Touch every block; failures are noted, and the rest goes on."""
    pace.work(
        batches(infos, pace.batch_bytes), lambda batch: _touch(client, batch, failures, advance), concurrency
    )  # fmt: skip


def _touch(client: Client, batch: list[Block], failures: Failures, advance: Callable[[int], None]) -> None:
    left = batch
    while left:
        answers = client.read_many(
            [(block.info, block.offset, 1) for block in left], deadline_s=DEADLINE_S, return_errors=True
        )
        late: list[Block] = []
        for block, answer in zip(left, answers, strict=True):
            if isinstance(answer, DeadlineExceeded):
                late.append(block)
                continue
            if isinstance(answer, Exception):
                failures.setdefault(block.info.url, str(answer))
            advance(block.size)
        if len(late) == len(left):  # a slow origin gets more time as long as it delivers something
            for block in late:
                failures.setdefault(block.info.url, f"nothing arrived within {DEADLINE_S:.0f} s")
                advance(block.size)
            return
        left = late


def _reasons(client: Client, missing: list[ObjectInfo], infos: list[ObjectInfo], failures: Failures) -> dict[str, str]:
    """Why each of the first few missing objects is not resident."""
    try:
        values = client.node_stats()
    except ShoalError as error:
        why_gone = f"the node cannot be asked: {error}"
    else:
        why_gone = _why_gone(values, infos)
    return {info.url: failures.get(info.url, why_gone) for info in missing}


def _too_large(values: Values, infos: list[ObjectInfo]) -> str:
    tiers = ", ".join(f"{name} {units.size(tier['budget_bytes'])}" for name, tier in values["tiers"].items())
    return f"{units.size(sum(info.size for info in infos))} asked for, and the cache is smaller ({tiers})"


def _why_gone(values: Values, infos: list[ObjectInfo]) -> str:
    wanted = sum(info.size for info in infos)
    if wanted > capacity(values):
        return f"evicted again: {_too_large(values, infos)}"
    if values["disk_failed"]:
        return "evicted again: the disk tier failed, see the node's log"
    for name, space in values["spaces"].items():
        quota = space["quota_bytes"]
        if quota is not None and quota < wanted and space["used_bytes"] * 10 >= quota * 9:
            return f"evicted again: space {name} is at its quota of {units.size(quota)}"
    return "evicted again: other data needed the room, or what is left is leased or pinned"


def _report(result: dict[str, Any]) -> None:
    seconds = max(result["seconds"], 1e-9)
    for url, reason in list(result["missing"].items())[:ERRORS_SHOWN]:
        output.note(f"shoal: {output.printable(url)}: {reason}")
    hidden = result["missing_objects"] - ERRORS_SHOWN
    if hidden > 0:
        output.note(f"shoal: and {units.number(hidden)} more objects; --json lists all")
    count, total = units.number(result["objects"]), units.size(result["bytes"])
    copies = result.get("copies")
    where = "in the cache" if copies is None else f"in the cache, verified at {copies} owner{'s' * (copies > 1)} each"
    plural = "" if result["objects"] == 1 else "s"
    if result["missing_objects"]:
        whole = units.number(result["objects"] - result["missing_objects"])
        print(f"{whole} of {count} object{plural} completely in the cache")
    elif not result["cold_bytes"]:
        print(f"{count} object{plural}, {total}: all {where} already")
    else:
        speed = units.rate(result["cold_bytes"] / seconds)
        print(f"{count} object{plural}, {total}: all {where}; {units.duration(seconds)}, {speed}")

"""shoal warm: make objects resident, then look whether they are.

Of each block that is not cached, one byte is read: the node fills the whole block, errors come back to us, and next to
nothing crosses the door. Blocks are asked for in batches, several at once; the node bounds what it asks of the origin.
Where the objects are larger than DRAM, each block must reach the disk tier before it is pushed out, so batches wait
while the node's queue of disk writes is long. At the end every object is inspected, and what is missing tried again
where it could fit; then the command says what is missing and why, and fails.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.cli import connection, objects, output, units
from shoal_core import limits
from shoal_core.errors import DeadlineExceeded, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.objects import ObjectInfo

BATCH_BYTES = 16 * limits.MIB
BATCH_BLOCKS_MAX = 1024
CONCURRENCY_DEFAULT = 4
DEADLINE_S = 120.0
ROUNDS_MAX = 4
DRAM_FRACTION = 0.25
"""Of DRAM, that may be in flight, and as much again that may wait for the disk."""
QUEUE_STALL_S = 10.0
QUEUE_POLL_S = 0.02
ERRORS_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("urls", metavar="URL", nargs="+", help="an object, or what lies above some")
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=positive,
        default=CONCURRENCY_DEFAULT,
        help=f"batches of {units.size(BATCH_BYTES)} in flight at most (default {CONCURRENCY_DEFAULT});"
        " the node's fill.concurrency bounds what reaches the origin",
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
        missing = _missing(client, infos)
        cold_bytes = sum(info.size for info in missing)
        pace = Pace(client, infos, arguments.concurrency)
        if missing and not pace.fits and not arguments.json:
            output.note(f"shoal: {_too_large(client.node_stats(), infos)}; what comes first will be evicted again")
        failures: Failures = {}
        for _ in range(ROUNDS_MAX):
            if not missing or failures:
                break
            with _progress(sum(info.size for info in missing), shown=not arguments.json) as advance:
                _fill(client, missing, arguments.concurrency, pace, failures, advance)
            missing = _missing(client, infos)
            if not pace.fits:
                break
        result: dict[str, Any] = {
            "objects": len(infos),
            "bytes": sum(info.size for info in infos),
            "cold_bytes": cold_bytes,
            "seconds": time.monotonic() - started,
            "missing_objects": len(missing),
            "missing": _reasons(client, missing, infos, failures) if missing else {},
        }
    if arguments.json:
        output.json_line(result)
    else:
        _report(result)
    return 1 if missing else 0


class Pace:
    """How much is asked for at once, so that in a small cache the batches do not push each other out.

    A part of DRAM may be in flight, and a part may wait for the disk; batches are held back while more does.
    """

    def __init__(self, client: Client, infos: list[ObjectInfo], concurrency: int) -> None:
        self._client = client
        values = client.node_stats()
        total, blocks = sum(info.size for info in infos), sum(objects.block_count(info) for info in infos)
        room = values["tiers"]["dram"]["budget_bytes"]
        self.fits = total <= max(tier["budget_bytes"] for tier in values["tiers"].values())
        """Whether all of it can be there at once: only then is another round worth anything."""
        self._needed = "disk" in values["tiers"] and total > room / 2
        self._blocks_max = int(room * DRAM_FRACTION / max(1, total // max(1, blocks)))
        self.batch_bytes = min(BATCH_BYTES, int(room * DRAM_FRACTION / concurrency))

    def wait(self) -> None:
        """Returns when the queue is short, or does not get shorter: a stuck disk is no reason to hang."""
        shortest, since = None, time.monotonic()
        while self._needed:
            values = self._client.node_stats()
            queue = values["disk_queue"]
            if queue <= self._blocks_max or values["disk_failed"]:
                return
            if shortest is None or queue < shortest:
                shortest, since = queue, time.monotonic()
            elif time.monotonic() - since > QUEUE_STALL_S:
                self._needed = False
            time.sleep(QUEUE_POLL_S)


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
    with ThreadPoolExecutor(concurrency, "shoal-warm") as pool:
        running: set[Future[None]] = set()
        try:
            for batch in batches(infos, pace.batch_bytes):
                pace.wait()
                running.add(pool.submit(_touch, client, batch, failures, advance))
                if len(running) >= concurrency:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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


def _too_large(values: dict[str, Any], infos: list[ObjectInfo]) -> str:
    tiers = ", ".join(f"{name} {units.size(tier['budget_bytes'])}" for name, tier in values["tiers"].items())
    return f"{units.size(sum(info.size for info in infos))} asked for, and the cache is smaller ({tiers})"


def _why_gone(values: dict[str, Any], infos: list[ObjectInfo]) -> str:
    wanted = sum(info.size for info in infos)
    if wanted > max(tier["budget_bytes"] for tier in values["tiers"].values()):
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
    plural = "" if result["objects"] == 1 else "s"
    if result["missing_objects"]:
        whole = units.number(result["objects"] - result["missing_objects"])
        print(f"{whole} of {count} object{plural} completely in the cache")
    elif not result["cold_bytes"]:
        print(f"{count} object{plural}, {total}: all in the cache already")
    else:
        speed = units.rate(result["cold_bytes"] / seconds)
        print(f"{count} object{plural}, {total}: all in the cache; {units.duration(seconds)}, {speed}")


@contextlib.contextmanager
def _progress(total: int, *, shown: bool) -> Generator[Callable[[int], None]]:
    """What moves a bar: on a terminal a real one, elsewhere none."""
    if not shown or not total or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=output.console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("warm", total=total)
        yield lambda size: bar.advance(task, size)

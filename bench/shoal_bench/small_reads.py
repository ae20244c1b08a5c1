"""What do batches of 256 random reads of 4 KiB and 64 KiB cost?

Each size is read as ranges of large objects and as small objects. Over TCP a batch is compared with the same reads one
by one; over shared memory, under held grants, with Redis MGET of as many values of that size and with open().read() of
files on tmpfs. Of the ways to ask Redis the faster one is the reference. All sides return the same list of bytes.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import shoal
from shoal_bench import pairs, places, redis_server
from shoal_bench.report import Report
from shoal_core.limits import KIB, MIB

BATCH = 256
SIZES = (4 * KIB, 64 * KIB)
OBJECT_COUNT = 1024
_LARGE_BYTES = 64 * MIB
_LARGE_COUNT = 4
_BATCHES = 4
"""Different batches that one round goes through."""

Requests = Sequence[Any]
Values = dict[str, bytes]


def run(report: Report) -> None:
    """For each size and shape: one row over TCP, two over shared memory."""
    random.seed(5)
    with places.directory() as place, places.node(place, 1024 * MIB) as node, _redis(report, place) as redis:
        large = [places.write_object(place / "large" / str(n), _LARGE_BYTES) for n in range(_LARGE_COUNT)]
        with shoal.connect(node.tcp) as remote, shoal.connect(node.unix) as local:
            for size in SIZES:
                places_in_one = range(_LARGE_BYTES // size)
                ranges = [
                    [(random.choice(large), at * size, size) for at in random.sample(places_in_one, BATCH)]
                    for _ in range(_BATCHES)
                ]
                _measure(report, f"{size // KIB} KiB ranges", size, ranges, remote, local, redis)
                urls = _small_objects(place / f"small-{size}", size)
                objects = [random.sample(urls, BATCH) for _ in range(_BATCHES)]
                _measure(report, f"{size // KIB} KiB objects", size, objects, remote, local, redis)


def _measure(
    report: Report, what: str, size: int, batches: Sequence[Requests], remote: shoal.Client, local: shoal.Client,
    redis: Any,
) -> None:  # fmt: skip
    values = [local.read_many(batch) for batch in batches]
    assert [remote.read_many(batch) for batch in batches] == values
    pair = pairs.compare(
        _side(remote.read_many, batches), _side(lambda batch: _one_by_one(remote, batch), batches), report.rounds(15)
    )
    _row(report, f"TCP, 256 x {what}: read_many", pair, "a loop of read", 5.0)
    if redis is not None:
        _against_redis(report, what, size, batches, values, local, redis)
    with _files(values) as names:
        pair = pairs.best_of(
            _numbered(lambda n: local.read_many(batches[n])),
            [_numbered(lambda n: [_read_file(name) for name in names[n]])],
            report.rounds(25),
        )[0]
    _row(report, f"shared memory, 256 x {what}: read_many", pair, "open().read() on tmpfs", 1.0)


def _against_redis(
    report: Report, what: str, size: int, batches: Sequence[Requests], values: list[list[bytes]], local: shoal.Client,
    path: str,
) -> None:  # fmt: skip
    bare = redis_server.Bare(path)
    named = redis_server.package(path)
    names = [[b"%b:%d:%d" % (what.encode(), n, at) for at in range(BATCH)] for n in range(len(batches))]
    sides = [_numbered(lambda n: bare.mget(names[n], size))]
    labels = ["Redis MGET, raw socket"]
    if named is None:
        report.skip(what, "the redis package is not installed; Redis is asked over a raw socket only")
    else:
        client, label = named
        for part, found in zip(names, values, strict=True):
            client.mset(dict(zip(part, found, strict=True)))
        sides.append(_numbered(lambda n: client.mget(names[n])))
        labels.append(f"Redis MGET, {label}")
        assert bare.mget(names[0], size) == client.mget(names[0]) == values[0]
        pair, fastest = pairs.best_of(_numbered(lambda n: local.read_many(batches[n])), sides, report.rounds(25))
        _row(report, f"shared memory, 256 x {what}: read_many", pair, labels[fastest], 1.0)
        client.flushall()
        client.close()
    bare.close()


def _row(report: Report, question: str, pair: pairs.Pair, reference: str, at_least: float) -> None:
    report.row(
        question, pair.ours_s * 1e6, pair.reference_s * 1e6, "us", ratio=pair.speed, reference_name=reference,
        at_least=at_least,
    )  # fmt: skip


def _side(read: Callable[[Requests], object], batches: Sequence[Requests]) -> pairs.Side:
    """Seconds per read."""

    def work() -> None:
        for batch in batches:
            read(batch)

    return pairs.timed(work, len(batches) * BATCH)


def _numbered(read: Callable[[int], object]) -> pairs.Side:
    def work() -> None:
        for number in range(_BATCHES):
            read(number)

    return pairs.timed(work, _BATCHES * BATCH)


def _one_by_one(client: shoal.Client, batch: Requests) -> None:
    for request in batch:
        if isinstance(request, tuple):
            client.read(*request)
        else:
            client.read(request)


def _small_objects(folder: Path, size: int) -> list[str]:
    return [places.write_object(folder / f"{number:05}", size) for number in range(OBJECT_COUNT)]


@contextlib.contextmanager
def _redis(report: Report, place: Path) -> Iterator[str | None]:
    with contextlib.ExitStack() as stack:
        path: str | None = None
        try:
            path = stack.enter_context(redis_server.running(place))
        except redis_server.Unavailable as error:
            report.skip("shared memory against Redis MGET", str(error))
        yield path


@contextlib.contextmanager
def _files(values: list[list[bytes]]) -> Iterator[list[list[str]]]:
    """The values as files on tmpfs; their names."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir="/dev/shm") as folder:
        names: list[list[str]] = []
        for batch, part in enumerate(values):
            names.append([f"{folder}/{batch}-{number}" for number in range(len(part))])
            for name, value in zip(names[-1], part, strict=True):
                Path(name).write_bytes(value)
        yield names


def _read_file(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()

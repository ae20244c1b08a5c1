"""shoal cat: an object's bytes on standard output, a few blocks at a time, whatever its size."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from shoal.cli import connection
from shoal_core import limits
from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.client import Client

CHUNK_BYTES = 16 * limits.MIB
"""Read and written at a time: four default blocks, filled beside each other."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL")
    parser.add_argument(
        "--range",
        metavar="A-B",
        type=byte_range,
        default=(0, None),
        help="only bytes A to B, both included, as curl -r and HTTP count; A- to the end, -N the last N",
    )
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments) as client:
        size = client.info(arguments.url).size
        start, end = bounds(arguments.range, size, arguments.url)
        _copy(client, arguments.url, start, end)
    return 0


def byte_range(text: str) -> tuple[int | None, int | None]:
    """'5-9' -> (5, 9), '5-' -> (5, None), '-9' -> (None, 9)."""
    first, dash, last = text.partition("-")
    whole = all(part == "" or (part.isascii() and part.isdigit()) for part in (first, last))
    if not dash or not (first or last) or not whole or (first and last and int(first) > int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A-B, A- or -N")
    return (int(first) if first else None), (int(last) if last else None)


def bounds(asked: tuple[int | None, int | None], size: int, url: str) -> tuple[int, int]:
    """First byte, and the one after the last. A range past the end is cut; one that begins there is an error."""
    first, last = asked
    if first is None:
        return max(0, size - (last or 0)), size
    if first > 0 and first >= size:
        raise BadRequest(f"{url}: --range begins at byte {first} of {size}")
    return first, size if last is None else min(last + 1, size)


def _copy(client: Client, url: str, start: int, end: int) -> None:
    sys.stdout.flush()
    output = sys.stdout.fileno()
    buffer = memoryview(bytearray(min(CHUNK_BYTES, end - start)))
    while start < end:
        chunk = buffer[: min(CHUNK_BYTES, end - start)]
        if start + len(chunk) < end:
            client.prefetch(url, start + len(chunk), min(CHUNK_BYTES, end - start - len(chunk)))
        count = client.read_into(url, chunk, start)
        if count == 0:
            return
        start += count
        rest = chunk[:count]
        while rest:
            rest = rest[os.write(output, rest) :]

"""shoal ls: what lies below a URL at its origin, and how much of it is cached.

The listing comes from the origin through the node, which remembers it: reads after it cost no HEAD. Without -r, what
lies deeper than one level is summed up by folder, as ls does.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from shoal.cli import connection, objects, output
from shoal_core import units

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.objects import ObjectInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="an object, or what lies above some: s3://bucket/folder/")
    parser.add_argument("-r", "--recursive", action="store_true", help="every object, not folders")
    parser.add_argument("-l", "--long", action="store_true", help="exact sizes, bytes in each tier, versions")
    parser.add_argument("--json", action="store_true", help="one JSON document per line")
    connection.add_arguments(parser)


class Row(NamedTuple):
    """An object, or the sum of a folder."""

    name: str
    url: str
    size: int
    cached_bytes: int
    """In any tier, each block once; dram_bytes and disk_bytes overlap."""
    dram_bytes: int
    disk_bytes: int
    object_count: int
    etag: str | None
    """None for a folder."""


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments) as client:
        rows = _rows(client, arguments.url, objects.below(client, arguments.url))
    if not arguments.recursive:
        rows = folded(rows)
    if arguments.json:
        for row in rows:
            output.json_line(row._asdict() | {"folder": row.etag is None})
    elif arguments.long:
        _print_long(rows)
    else:
        _print(rows)
    return 0


def _rows(client: Client, url: str, infos: list[ObjectInfo]) -> list[Row]:
    prefix = url.rstrip("/") + "/"
    rows: list[Row] = []
    for info, found in objects.residency(client, infos):
        name = info.url[len(prefix) :] if info.url.startswith(prefix) else info.url.rpartition("/")[2]
        cached = objects.cached_bytes(info, found)
        rows.append(Row(name, info.url, info.size, cached, found.dram_bytes, found.disk_bytes, 1, info.etag))
    return sorted(rows, key=lambda row: row.url)


def folded(rows: list[Row]) -> list[Row]:
    """One level: objects as they are, everything deeper as one row per folder, in the order of the listing."""
    found: dict[str, Row] = {}
    for row in rows:
        head, slash, rest = row.name.partition("/")
        if not slash:
            found[row.name] = row
            continue
        name = head + "/"
        at = found.get(name)
        url = row.url[: len(row.url) - len(rest)]
        found[name] = Row(
            name,
            url,
            row.size + (at.size if at else 0),
            row.cached_bytes + (at.cached_bytes if at else 0),
            row.dram_bytes + (at.dram_bytes if at else 0),
            row.disk_bytes + (at.disk_bytes if at else 0),
            row.object_count + (at.object_count if at else 0),
            None,
        )
    return list(found.values())


def tier(row: Row) -> str:
    """Where the cached bytes are."""
    if not row.dram_bytes and not row.disk_bytes:
        return "-"
    return "+".join(name for name, held in (("dram", row.dram_bytes), ("disk", row.disk_bytes)) if held)


def _print(rows: list[Row]) -> None:
    output.columns(
        ("SIZE", "CACHED", "TIER", "NAME"),
        [
            (units.size(row.size), units.percent(row.cached_bytes, row.size), tier(row), output.printable(row.name))
            for row in rows
        ],
        left=frozenset({"TIER"}),
    )


def _print_long(rows: list[Row]) -> None:
    output.columns(
        ("BYTES", "CACHED", "DRAM BYTES", "DISK BYTES", "OBJECTS", "VERSION", "URL"),
        [
            (
                str(row.size),
                units.percent(row.cached_bytes, row.size),
                str(row.dram_bytes),
                str(row.disk_bytes),
                str(row.object_count),
                "-" if row.etag is None else output.printable(row.etag),
                output.printable(row.url),
            )
            for row in rows
        ],
        left=frozenset({"VERSION"}),
    )

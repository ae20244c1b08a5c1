"""shoal evict: drop objects from every tier. Blocks that somebody is reading go when the last reader is done."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from shoal.cli import connection, output
from shoal_core import units
from shoal_core.errors import NotFound

if TYPE_CHECKING:
    from shoal.client import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("urls", metavar="URL", nargs="+", help="an object, or what lies above some")
    parser.add_argument("--json", action="store_true", help="one JSON document per URL")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments) as client:
        for url in arguments.urls:
            count = _evict(client, url)
            if arguments.json:
                output.json_line({"url": url, "blocks": count})
            else:
                print(f"{output.printable(url)}: {units.number(count)} block{'' if count == 1 else 's'} dropped")
    return 0


def _evict(client: Client, url: str) -> int:
    """A URL is an object or everything below it, as for the other commands."""
    try:
        return client.evict(url)
    except NotFound:
        if url.endswith("/") or not client.list(url):
            raise
        return client.evict(url + "/")

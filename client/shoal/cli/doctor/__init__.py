"""shoal doctor: everything that can be wrong between a program and its bytes, looked at once, with what to do about it.

Each check is one line: how it is, and when that is not good, one more with the remedy. Nothing is changed, no node is
started, nothing takes longer than a few seconds. Exit code 1 when a check failed; warnings do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cli import connection, output
from shoal.cli.doctor.check import Check, Outcome

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.cli.doctor.node import Node

_MARKS: dict[Outcome, tuple[str, str]] = {
    "pass": ("ok", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "bold red"),
    "skip": ("skip", "dim"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("urls", metavar="URL", nargs="*", help="origins to try, through the node: s3://bucket/prefix")
    parser.add_argument("--json", action="store_true", help="one JSON document per check")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    found: list[Check] = []
    console = output.console()
    for check in _checks(arguments):
        found.append(check)
        if arguments.json:
            output.json_line(check)
        else:
            _show(console, check)
    count = {outcome: sum(check.outcome == outcome for check in found) for outcome in _MARKS}
    if not arguments.json:
        print()
        print(f"{count['pass']} fine, {count['warn']} to look at, {count['fail']} failed"
              + (f", {count['skip']} not tested" if count["skip"] else ""))  # fmt: skip
    return 1 if count["fail"] else 0


def _show(console: Console, check: Check) -> None:
    from rich.table import Table
    from rich.text import Text

    word, style = _MARKS[check.outcome]
    if not console.is_terminal:
        print(f"{word:<4}  {check.name:<13}  {output.printable(check.finding)}")
        if check.remedy:
            print(f"{'':21}-> {check.remedy}")
        return
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=4)
    line.add_column(width=13)
    line.add_column()
    line.add_row(Text(word, style), Text(check.name, "bold"), Text(output.printable(check.finding)))
    if check.remedy:
        line.add_row("", "", Text(f"-> {check.remedy}", "italic"))
    console.print(line)


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    from shoal.cli.doctor import address, disk, host, node

    chosen = address.choose(arguments.address)
    reached, problem = _reach(chosen.address)
    local = reached.values if reached is not None and reached.is_local else None
    yield from host.checks(local)
    yield chosen.check
    if reached is not None:
        yield from node.checks(reached)
    elif problem is not None:
        yield problem
    directory = _disk_directory(local) if reached is None or local is not None else None
    if directory is not None:
        yield from disk.checks(directory, local)
    elif local is not None:
        yield Check("disk", "pass", "the node has no disk tier")
    yield from _origins(arguments, reached)


def _reach(address: str | None) -> tuple[Node | None, Check | None]:
    from shoal.cli.doctor import node
    from shoal_core.errors import ShoalError

    if address is None:
        return None, None
    try:
        return node.reach(address), None
    except ShoalError as error:
        return None, _unreachable(address, str(error))


def _unreachable(address: str, error: str) -> Check:
    from shoal import embedded

    if address == embedded.address():
        if not Path(address.removeprefix("unix:")).exists():
            return Check("node", "pass", "not running; the first program that needs it starts it")
        return Check("node", "warn", f"{error}; its socket is left over", "it is replaced when a program connects")
    return Check("node", "fail", error, "start the node, or correct the address; until then reads go to the origin")


def _disk_directory(values: dict[str, Any] | None) -> Path | None:
    """The node's, or the one that an embedded node would use."""
    from shoal import embedded

    if values is None:
        return embedded.cache_directory() / "nvme"
    configured = values["config"]["nvme"]
    return Path(configured[0]["directory"]) if configured else None


def _origins(arguments: argparse.Namespace, reached: Node | None) -> Iterator[Check]:
    from shoal.cli.doctor import origin

    if reached is None:
        for url in arguments.urls:
            yield Check("origin", "skip", f"{url}: no node to read it", "start one: shoal ls " + url)
        return
    with connection.open_client(arguments, start=False) as client:
        for url in arguments.urls:
            yield origin.check(client, url)

"""shoal top: the node at work, once a second.

The node counts since it started; what is shown as a rate is the difference of two samples over the time between them.
Reads under held grants send no message, so the node learns their number from the clients' reports (a little late) and
their bytes not at all: they are shown as reads only.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.cli import connection, output
from shoal.cli.stat import hit_ratio
from shoal_core import units

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shoal.client import Client

Values = dict[str, Any]
SOURCES = {"dram": "DRAM", "disk": "disk", "peer": "peers", "origin": "origin"}
"""And what stands above their columns."""
BAR_CELLS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="one sample (rates over one interval), then end")
    parser.add_argument("--interval", metavar="SECONDS", type=interval, default=1.0, help="between samples (default 1)")
    parser.add_argument("--json", action="store_true", help="each sample as one JSON document per line")
    connection.add_arguments(parser)


def interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds


class Sample(NamedTuple):
    """The node's values, and what they were `seconds` before."""

    values: Values
    before: Values
    seconds: float

    def per_s(self, *path: str) -> float:
        """Rate of the counter at this place in the values."""
        return (_at(self.values, path) - _at(self.before, path)) / self.seconds


def _at(values: Any, path: tuple[str, ...]) -> float:
    for name in path:
        values = values.get(name, 0) if isinstance(values, dict) else 0
    return sum(_numbers(values))


def _numbers(values: Any) -> Iterator[float]:
    if isinstance(values, dict):
        for inner in values.values():
            yield from _numbers(inner)
    else:
        yield values


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments, start=False) as client:
        samples = _samples(client, arguments.interval)
        if arguments.json:
            for sample in samples:
                output.json_line({"seconds": sample.seconds, "rates": rates(sample), "values": sample.values})
                if arguments.once:
                    break
        elif arguments.once:
            output.console().print(report(next(samples)))
        else:
            _watch(samples)
    return 0


def _samples(client: Client, seconds: float) -> Iterator[Sample]:
    before, then = client.node_stats(), time.monotonic()
    while True:
        time.sleep(seconds)
        values, now = client.node_stats(), time.monotonic()
        if values["pid"] != before["pid"]:  # another node answers now; its counters began anew
            before = values
        yield Sample(values, before, now - then)
        before, then = values, now


def _watch(samples: Iterator[Sample]) -> None:
    from rich.live import Live

    console = output.console()
    # Ctrl-C is how a watcher leaves, not a failure.
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=console.is_terminal, auto_refresh=False) as live,
    ):
        for sample in samples:
            live.update(report(sample), refresh=True)


def rates(sample: Sample) -> Values:
    """The rates that `report` shows, for scripts."""
    doors = sample.values["reads"]
    return {
        "reads_per_s": {door: sample.per_s("reads", door) for door in doors},
        "bytes_per_s": {door: sample.per_s("read_bytes", door) for door in doors},
        "granted_hits_per_s": sample.per_s("granted_hits"),
        "fill_bytes_per_s": sample.per_s("fill_bytes"),
        "origin_requests_per_s": sample.per_s("origin_requests"),
        "peer_bytes_per_s": sample.per_s("peer_bytes"),
        "pulled_bytes_per_s": sample.per_s("pulled_bytes"),
        "evictions_per_s": sample.per_s("evictions"),
    }


def report(sample: Sample) -> RenderableType:
    """One screen."""
    from rich.console import Group
    from rich.text import Text

    values = sample.values
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(values["node"], "bold")
    head.append(f"  pid {values['pid']}, up {units.duration(values['uptime_s'])}", "dim")
    if values.get("draining"):
        head.append("  draining", "bold yellow")
    if values.get("disk_failed"):
        head.append("  disk tier failed", "bold red")
    hits = Text(f"since it started: {hit_ratio(values)}", "dim", no_wrap=True, overflow="ellipsis")
    parts: list[RenderableType] = [head, "", _doors(sample), "", _tiers(sample), "", _now(sample), "", hits]
    if values["cluster"] is not None:
        parts.append(Text(_cluster(sample), "dim", no_wrap=True, overflow="ellipsis"))
    trouble = _trouble(sample)
    if trouble:
        parts.append(Text(trouble, "yellow"))
    return Group(*parts)


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(titles[0], no_wrap=True, min_width=13)
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True, min_width=8)
    return table


def _doors(sample: Sample) -> Table:
    sources = [source for source in SOURCES if source != "peer" or sample.values["cluster"] is not None]
    table = _table("door", "reads", "bytes", *(SOURCES[source] for source in sources))
    for door in sample.values["reads"]:
        rate = {source: sample.per_s("reads", door, source) for source in sources}
        total = sum(rate.values())
        table.add_row(
            door.replace("_", " "),
            units.frequency(total),
            units.rate(sample.per_s("read_bytes", door)),
            *(units.percent(rate[source], total) for source in sources),
            style="dim" if not total else None,
        )
    held = sample.per_s("granted_hits")
    table.add_row("held grants", units.frequency(held), "", "100 %" if held else "-", style="dim" if not held else None)
    return table


def _tiers(sample: Sample) -> Table:
    table = _table("tier", "used", "budget", "full", "", "blocks", "evicted")
    for name, tier in sample.values["tiers"].items():
        used, budget = tier["used_bytes"] + tier["index_bytes"], tier["budget_bytes"]
        table.add_row(
            {"dram": "DRAM"}.get(name, name),
            units.size(used),
            units.size(budget),
            units.percent(used, budget),
            _bar(used / budget if budget else 0.0),
            units.number(tier["blocks"]),
            units.frequency(sample.per_s("evictions", name)),
        )
    return table


def _bar(share: float) -> str:
    full = min(BAR_CELLS, int(share * BAR_CELLS + 0.5))
    return "█" * full + "░" * (BAR_CELLS - full)


def _now(sample: Sample) -> Table:
    values = sample.values
    table = _table("fills", "", "readers", "")
    table.columns[2].justify = "left"
    rows = [
        ("in flight", units.number(values["fills_in_flight"]), "clients", units.number(values["clients"])),
        ("from origins", units.rate(sample.per_s("fill_bytes")), "leases", units.number(values["leases"])),
        ("requests", units.frequency(sample.per_s("origin_requests")), "leased", units.size(values["leased_bytes"])),
        ("disk queue", units.number(values["disk_queue"]), "revokes", units.frequency(sample.per_s("revokes"))),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _cluster(sample: Sample) -> str:
    """What the node does with the others."""
    values = sample.values
    nodes = values["cluster"]["nodes"]
    names = ", ".join(output.printable(node_id) for node_id, node in nodes.items() if node["dead"])
    dead = f", dead: {names}" if names else ""
    return (
        f"epoch {values['view_epoch']}, {units.number(len(nodes))} nodes{dead}, "
        f"from peers {units.rate(sample.per_s('peer_bytes'))}, near copies {units.size(values['near_bytes'])}, "
        f"to be pulled {units.number(values['pull_queue'])}"
    )


def _trouble(sample: Sample) -> str:
    """Counters that are best at zero, with their totals; '' when all are."""
    found: list[str] = []
    for family in ("fallbacks", "corrupt_pages", "disk_errors"):
        for kind, count in sample.values[family].items():
            if count:
                new = sample.per_s(family, kind)
                recent = f" (+{units.frequency(new)})" if new else ""
                found.append(f"{family.replace('_', ' ')} {kind.replace('_', ' ')}: {units.number(count)}{recent}")
    return ", ".join(found)

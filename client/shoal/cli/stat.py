"""shoal stat: one object as the cache knows it; without a URL, the node."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from shoal.cli import connection, objects, output
from shoal_core import units

if TYPE_CHECKING:
    from shoal.client import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", help="an object; without it, the node is shown")
    parser.add_argument("--json", action="store_true", help="everything there is, as one JSON document")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments, start=arguments.url is not None) as client:
        if arguments.url is None:
            _show_node(client.node_stats(), as_json=arguments.json)
        else:
            _show_object(client, arguments.url, as_json=arguments.json)
    return 0


def _show_object(client: Client, url: str, *, as_json: bool) -> None:
    info = client.info(url)
    ((_, found),) = objects.residency(client, [info])
    total = objects.block_count(info)
    cached = objects.cached_bytes(info, found)
    if as_json:
        output.json_line(
            {
                "url": info.url,
                "origin": info.origin,
                "size": info.size,
                "etag": info.etag,
                "fingerprint": info.fingerprint.hex(),
                "stale": info.stale,
                "block_size_bytes": info.block_size_bytes,
                "blocks": total,
                "blocks_cached": found.block_count,
                "resident": found.resident,
                "cached_bytes": cached,
                "dram_bytes": found.dram_bytes,
                "disk_bytes": found.disk_bytes,
            }
        )
        return
    rows = [("url", output.printable(info.url))]
    if info.origin != info.url:
        rows.append(("origin", output.printable(info.origin)))
    rows += [
        ("size", f"{units.size(info.size)} ({units.number(info.size)} bytes)"),
        ("version", output.printable(info.etag) + (" (the origin could not be asked)" if info.stale else "")),
        ("fingerprint", info.fingerprint.hex()),
        ("blocks", f"{units.number(total)} of {units.size(info.block_size_bytes)}"),
        ("cached", f"{units.percent(cached, info.size)}, {units.number(found.block_count)} blocks"),
        ("in DRAM", units.size(found.dram_bytes)),
        ("on disk", units.size(found.disk_bytes)),
    ]
    output.fields(rows)


def _show_node(values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.json_line(values)
        return
    kind = "embedded" if values["embedded"] else "standing"
    rows = [
        ("node", f"{values['node']} ({kind}{', draining' if values.get('draining') else ''})"),
        ("pid", str(values["pid"])),
        ("address", ", ".join(address for address in values["addresses"] if address != "memory:")),
        ("up", units.duration(values["uptime_s"])),
    ]
    rows += [("DRAM" if name == "dram" else str(name), _tier(tier)) for name, tier in values["tiers"].items()]
    rows += [
        ("hits", hit_ratio(values)),
        ("clients", units.number(values["clients"])),
        ("leases", f"{units.number(values['leases'])}, {units.size(values['leased_bytes'])}"),
    ]
    rows += cluster_rows(values)
    fallbacks = {kind: count for kind, count in values["fallbacks"].items() if count}
    if fallbacks:
        rows.append(("fallbacks", ", ".join(f"{kind} {units.number(count)}" for kind, count in fallbacks.items())))
    output.fields(rows)
    _show_spaces(values)


def cluster_rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """What a node that is one of many does with the others; none where it is alone."""
    cluster = values.get("cluster")
    if cluster is None:
        return []
    dead = [node_id for node_id, node in cluster["nodes"].items() if node["dead"]]
    states = f"{units.number(len(cluster['nodes']))} nodes" + (f", dead: {', '.join(dead)}" if dead else "")
    asked: dict[str, int] = values["peer_fills"].get("asked", {})
    rows = [
        ("cluster", f"epoch {values['view_epoch']}, {output.printable(states)}"),
        ("from peers", f"{units.number(asked.get('ok', 0))} blocks, {units.size(values['peer_bytes'])}"),
        ("near copies", units.size(values["near_bytes"])),
        ("to be pulled", f"{units.number(values['pull_queue'])} blocks"),
    ]
    if cluster["view_error"]:
        rows.append(("view", output.printable(cluster["view_error"])))
    return rows


def _tier(tier: dict[str, int]) -> str:
    used, budget = tier["used_bytes"], tier["budget_bytes"]
    index = f", index {units.size(tier['index_bytes'])}" if tier["index_bytes"] else ""
    share = units.percent(used, budget)
    return f"{units.size(used)} of {units.size(budget)} ({share}), {units.number(tier['blocks'])} blocks{index}"


def hit_ratio(values: dict[str, Any]) -> str:
    """Of all reads since the node started, those that did not have to wait for the origin."""
    by_source = {"dram": values["granted_hits"], "disk": 0, "origin": 0, "peer": 0}
    for row in values["reads"].values():
        for source, count in row.items():
            by_source[source] += count
    total = sum(by_source.values())
    if not total:
        return "no reads yet"
    hits = total - by_source["origin"]
    peer = f"peers {units.percent(by_source['peer'], total)}, " if by_source["peer"] else ""
    return (
        f"{units.percent(hits, total)} of {units.number(total)} reads (DRAM {units.percent(by_source['dram'], total)}, "
        f"disk {units.percent(by_source['disk'], total)}, {peer}origin {units.percent(by_source['origin'], total)})"
    )


def _show_spaces(values: dict[str, Any]) -> None:
    datasets = values.get("config", {}).get("datasets", {})
    rows = [
        (
            units.size(space["used_bytes"]),
            "-" if space["quota_bytes"] is None else units.size(space["quota_bytes"]),
            output.printable(name),
            output.printable(datasets.get(name, {}).get("url", "-")),
        )
        for name, space in values["spaces"].items()
    ]
    print()
    output.columns(("USED", "QUOTA", "SPACE", "ORIGIN"), rows, left=frozenset({"SPACE"}))

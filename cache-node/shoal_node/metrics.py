"""What the node counts, and how it is shown to Prometheus and to `shoal top`.

Hot paths increment plain ints in `Counters` (`counters.origin_requests += 1`, `counters.reads["tcp"][source] += 1`);
there is no Prometheus object per event. `FAMILIES` is the one table of names, labels and help texts; it is walked only
when somebody asks: `snapshot` gives nested mappings (the stat verb, /status), `render` gives Prometheus text. Counters
only grow; what rises and falls is in `Gauges`, which the runtime fills in when asked.

An increment is not atomic across threads: whoever shares a `Counters` between threads increments under its own lock.
A labelled counter starts at zero for the label values in the table (so that a rate exists before the first event) and
accepts others; no label may come from user input beyond a URL's scheme or the name of a declared space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from shoal_core.verbs import get

SOURCES = get.SOURCE_NAMES
"""Index in a row of `Counters.reads`: get.SOURCE_DRAM, SOURCE_DISK, SOURCE_ORIGIN."""

DOORS = ("shared_memory", "unix", "tcp")
"""shared_memory: granted, the reader helps itself. unix, tcp: bytes sent through the socket."""


class Family(NamedTuple):
    """One row of the table. `preset`: label values that are shown before anything was counted."""

    attribute: str
    name: str
    help: str
    labels: tuple[str, ...] = ()
    preset: tuple[str | tuple[str, ...], ...] = ()


FAMILIES = (
    Family("reads", "shoal_reads", "Block ranges answered, by door and by where the bytes were", ("door", "source")),
    Family("read_bytes", "shoal_read_bytes", "Bytes of the ranges answered", ("door", "source")),
    Family("granted_hits", "shoal_granted_hits", "Reads under held grants; clients report them, they send no message"),
    Family("dataset_hits", "shoal_dataset_hits", "Reads of blocks that the cache answered, by space", ("space",)),
    Family("dataset_misses", "shoal_dataset_misses", "Blocks that a read had brought from the origin", ("space",)),
    Family("fills", "shoal_fills", "Blocks filled from an origin, by URL scheme and result", ("origin", "result")),
    Family("fill_bytes", "shoal_fill_bytes", "Bytes that fills brought in"),
    Family("origin_requests", "shoal_origin_requests", "Requests sent to origins: HEAD, GET and list pages"),
    Family(
        "peer_fills", "shoal_peer_fills", "Blocks looked for at other nodes, by why and how that ended",
        ("why", "result"), (("asked", "ok"), ("asked", "absent"), ("pulled", "ok")),
    ),
    Family("peer_bytes", "shoal_peer_bytes", "Bytes that came from other nodes"),
    Family("pulled_bytes", "shoal_pulled_bytes", "Bytes brought in the background: replicas, repair, hand-over"),
    Family(
        "offered", "shoal_offered", "Blocks offered to other nodes, by their answer",
        ("answer",), ("held", "queued", "refused", "failed"),
    ),
    Family(
        "prefetches", "shoal_prefetches", "Blocks that plans began to fill, by how far that came before a reader did",
        ("result",), ("filled", "joined", "dropped"),
    ),
    Family("loader_wait_seconds", "shoal_loader_wait_seconds", "Seconds that training loops waited for data"),
    Family("loader_steps", "shoal_loader_steps", "Steps of those training loops"),
    Family("evictions", "shoal_evictions", "Blocks dropped to make room", ("tier",), ("dram", "disk")),
    Family(
        "revokes", "shoal_revokes", "Grants asked back, by the client's answer",
        ("answer",), ("released", "busy", "gone"),
    ),
    Family(
        "fallbacks", "shoal_fallbacks", "Times that the second-best way was taken",
        ("kind",),
        ("huge_pages", "dram_budget", "o_direct", "disk_write_skipped", "bypass", "stale_resolve", "lease_limit"),
    ),
    Family(
        "refusals", "shoal_refusals", "Requests refused for who sent them: no good token, or not theirs to ask",
        ("why",), ("token", "expired", "scope"),
    ),
    Family(
        "corrupt_pages", "shoal_corrupt_pages", "Pages that did not match their digests, by where they were",
        ("where",), ("dram", "disk", "origin"),
    ),
    Family(
        "disk_errors", "shoal_disk_errors", "Failed operations of the disk tier",
        ("op",), ("read", "write", "erase"),
    ),
)  # fmt: skip


class Counters:
    """Everything the node counts since it started. Attribute names are the table's."""

    __slots__ = tuple(family.attribute for family in FAMILIES)

    reads: dict[str, list[int]]
    """By door, then by source (an index): `counters.reads["tcp"][get.SOURCE_DRAM] += 1`."""
    read_bytes: dict[str, list[int]]
    granted_hits: int
    dataset_hits: Counter[str]
    dataset_misses: Counter[str]
    fills: Counter[tuple[str, str]]
    """`counters.fills["s3", "ok"] += 1`; results: ok, or the error's class name."""
    fill_bytes: int
    origin_requests: int
    peer_fills: Counter[tuple[str, str]]
    """asked: somebody waits for the block. pulled: another node offered it."""
    peer_bytes: int
    pulled_bytes: int
    offered: Counter[str]
    prefetches: Counter[str]
    """filled: it was there before anybody asked. joined: somebody asked meanwhile. dropped: no room, or it failed."""
    loader_wait_seconds: float
    loader_steps: int
    evictions: Counter[str]
    revokes: Counter[str]
    fallbacks: Counter[str]
    refusals: Counter[str]
    """token: it was missing or worth nothing. expired: it had been good. scope: not for this reader."""
    corrupt_pages: Counter[str]
    disk_errors: Counter[str]

    def __init__(self) -> None:
        self.reads = {door: [0] * len(SOURCES) for door in DOORS}
        self.read_bytes = {door: [0] * len(SOURCES) for door in DOORS}
        self.granted_hits = 0
        self.dataset_hits = Counter()
        self.dataset_misses = Counter()
        self.fills = Counter()
        self.fill_bytes = 0
        self.origin_requests = 0
        self.peer_fills = Counter()
        self.peer_bytes = 0
        self.pulled_bytes = 0
        self.offered = Counter()
        self.prefetches = Counter()
        self.loader_wait_seconds = 0.0
        self.loader_steps = 0
        self.evictions = Counter()
        self.revokes = Counter()
        self.fallbacks = Counter()
        self.refusals = Counter()
        self.corrupt_pages = Counter()
        self.disk_errors = Counter()

    def door(self, name: str) -> tuple[list[int], list[int]]:
        """(reads, read_bytes) of one door by source, made if there was none: what a connection keeps at hand."""
        return (
            self.reads.setdefault(name, [0] * len(SOURCES)),
            self.read_bytes.setdefault(name, [0] * len(SOURCES)),
        )


class TierGauges(msgspec.Struct):
    """One tier now. `used_bytes` is payload in its slots; `index_bytes` is charged to DRAM, within its budget."""

    budget_bytes: int
    used_bytes: int
    blocks: int
    index_bytes: int = 0


class SpaceGauges(msgspec.Struct):
    """One space (dataset, or a URL's own) now, over all tiers."""

    used_bytes: int
    quota_bytes: int | None = None


class Gauges(msgspec.Struct):
    """What rises and falls."""

    tiers: dict[str, TierGauges]
    """By name: dram, disk."""
    spaces: dict[str, SpaceGauges]
    clients: int = 0
    volumes: int = 0
    """Volumes that have a socket of their own here."""
    leases: int = 0
    leased_bytes: int = 0
    fills_in_flight: int = 0
    disk_queue: int = 0
    """Blocks that wait to be written to the disk tier."""
    view_epoch: int = 0
    """0: the node is alone."""
    nodes_dead: int = 0
    near_bytes: int = 0
    pull_queue: int = 0
    """Blocks that other nodes offered and that wait to be brought."""


def samples(counters: Counters, family: Family) -> Iterator[tuple[tuple[str, ...], int | float]]:
    """(label values, count) of one family."""
    value: Any = getattr(counters, family.attribute)
    if isinstance(value, int | float):
        yield (), value
    elif isinstance(value, Counter):
        counts: dict[Any, int] = {**dict.fromkeys(family.preset, 0), **value}
        for key, count in counts.items():
            yield key if isinstance(key, tuple) else (key,), count
    else:
        for door, row in value.items():
            for source, count in zip(SOURCES, row, strict=True):
                yield (door, source), count


def snapshot(counters: Counters, gauges: Gauges) -> dict[str, Any]:
    """Everything as nested mappings of str to int: `{"reads": {"tcp": {"dram": 3}}, "tiers": {...}, "clients": 1}`."""
    values: dict[str, Any] = {}
    for family in FAMILIES:
        for key, count in samples(counters, family):
            if not key:
                values[family.attribute] = count
                continue
            inner = values.setdefault(family.attribute, {})
            for part in key[:-1]:
                inner = inner.setdefault(part, {})
            inner[key[-1]] = count
        values.setdefault(family.attribute, {})
    return values | msgspec.to_builtins(gauges)


def render(counters: Counters, gauges: Gauges) -> bytes:
    """Prometheus text. prometheus_client is imported here because only a node with a control door needs it."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counters, gauges))
    return generate_latest(registry)


class _Collector:
    def __init__(self, counters: Counters, gauges: Gauges) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for family in FAMILIES:
            metric = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for key, count in samples(self._counters, family):
                metric.add_metric(key, count)
            yield metric
        for name, text, labels, rows in _gauge_rows(self._gauges):
            metric = GaugeMetricFamily(name, text, labels=labels)
            for key, value in rows:
                metric.add_metric(key, value)
            yield metric


Rows = Iterable[tuple[tuple[str, ...], int]]


def _gauge_rows(gauges: Gauges) -> Iterator[tuple[str, str, tuple[str, ...], Rows]]:
    tiers, spaces = gauges.tiers.items(), gauges.spaces.items()
    yield (
        "shoal_tier_bytes",
        "Bytes of a tier: payload held, budget, and index",
        ("tier", "kind"),
        [
            row
            for name, tier in tiers
            for row in (
                ((name, "used"), tier.used_bytes),
                ((name, "budget"), tier.budget_bytes),
                ((name, "index"), tier.index_bytes),
            )
        ],
    )
    yield "shoal_blocks", "Blocks held", ("tier",), [((name,), tier.blocks) for name, tier in tiers]
    yield (
        "shoal_space_bytes",
        "Bytes a space holds, and its quota if it has one",
        ("space", "kind"),
        [
            ((name, kind), value)
            for name, space in spaces
            for kind, value in (("used", space.used_bytes), ("quota", space.quota_bytes))
            if value is not None
        ],
    )
    for attribute, text in (
        ("clients", "Clients connected"),
        ("volumes", "Volumes of pods that have a socket of their own here"),
        ("leases", "Grants that clients hold"),
        ("leased_bytes", "Bytes under those grants"),
        ("fills_in_flight", "Blocks being filled"),
        ("disk_queue", "Blocks that wait to be written to the disk tier"),
        ("view_epoch", "Epoch of the view that the node follows; 0: it is alone"),
        ("nodes_dead", "Nodes of the view that have not answered this one for cluster.repair_after_s"),
        ("near_bytes", "Bytes of blocks that other nodes own"),
        ("pull_queue", "Blocks that other nodes offered and that wait to be brought"),
    ):
        yield f"shoal_{attribute}", text, (), [((), getattr(gauges, attribute))]

"""The second-best ways that nodes took: what rose is an event, and what stands or rose lately keeps a pool Degraded.

Nodes count from their start. A count that this operator sees for the first time is news only if the node's pod is
young: an operator that was restarted does not tell everything once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal_operator.model import Event, NodeReport, Pod, Seen

STANDING = {
    "huge_pages": "memory in small pages, as the system has no free huge ones",
    "dram_budget": "less memory than its budget, as the system has no more",
    "o_direct": "a disk tier that goes through the page cache, as its file system cannot do without",
}
"""These last as long as the process."""
PASSING = {
    "disk_write_skipped": "blocks that were not written to disk, which was too slow",
    "bypass": "reads that went around the cache",
    "stale_resolve": "names that were resolved from memory, as the origin did not answer",
    "lease_limit": "reads that were copied, as their client held all it may",
}

RECENT_S = 600.0
YOUNG_S = 120.0
EVENTS_MAX = 8
_NAMED = 4

Memory = Mapping[tuple[str, str], Seen]


def watch(reports: Iterable[NodeReport], pods: Mapping[str, Pod], before: Memory) -> tuple[Memory, list[Event]]:
    """What is to be remembered of each counter, and the events that are due."""
    seen: dict[tuple[str, str], Seen] = {}
    events: list[Event] = []
    for report in sorted(reports, key=lambda report: report.node):
        pod = pods.get(report.node)
        is_young = pod is not None and report.at_s - pod.created_s < YOUNG_S
        for kind, count in sorted(report.fallbacks.items()):
            key = (report.node, kind)
            was = before.get(key, Seen(0 if is_young else count))
            # Less than before: the process is another, and counts anew.
            rose = count - was.count if count >= was.count else count
            seen[key] = Seen(count, report.at_s if rose else was.rose_s)
            if rose:
                events.append(Event("Warning", "Fallback", f"{report.node}: {kind} +{rose} ({_what(kind)})"))
    if len(events) > EVENTS_MAX:
        left = len(events) - EVENTS_MAX + 1
        events[EVENTS_MAX - 1 :] = [Event("Warning", "Fallback", f"and {left} more counters of fallbacks rose")]
    return seen, events


def complaints(memory: Memory, now_s: float) -> list[str]:
    """What keeps the pool from being as it was meant: for each kind, which nodes."""
    nodes: dict[str, list[str]] = {}
    for (node, kind), seen in sorted(memory.items()):
        stands = kind in STANDING and seen.count > 0
        if stands or (seen.rose_s is not None and now_s - seen.rose_s < RECENT_S):
            nodes.setdefault(kind, []).append(node)
    return [f"{kind} on {listed(names)} ({_what(kind)})" for kind, names in sorted(nodes.items())]


def listed(names: list[str]) -> str:
    """The first few, and how many there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _what(kind: str) -> str:
    return STANDING.get(kind) or PASSING.get(kind) or "a fallback that this operator does not know"

"""What is older than its space's TTL goes, a bounded number at a time. Pure."""

from __future__ import annotations

from shoal_node.state import NodeState

_COUNT_MAX = 256
"""Blocks of a pair dropped in one step, a fraction of a millisecond."""


def expire(state: NodeState, now_s: int) -> int:
    """Drop some of what has expired; how many. Call again until it is none."""
    count_max = _COUNT_MAX
    while True:
        found = [entry for tier in state.tiers for entry in tier.expired(now_s, count_max)]
        dropped = sum(state.drop(entry, erase=True, reason="expired") for entry in dict.fromkeys(found))
        # What was dropped before and is still leased stands first; there may be more behind it.
        if dropped or len(found) < count_max:
            return dropped
        count_max *= 4

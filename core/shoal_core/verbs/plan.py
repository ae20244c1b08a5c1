"""plan: a loader says what its stream reads next, and how long training waited for it.

Each run of blocks is used, for the next time, when the stream is at `use_at`. The node keeps what is used soon, and
fills what is not in its memory and used before `fill_until`, in the order given; where something has to go for that,
only what is used before `evict_until`, because whatever goes early is missed longer. A plan is advice: nothing waits
for it, and a node that forgot it serves the same bytes, later.
"""

from __future__ import annotations

import msgspec

KIND = 13


class Use(msgspec.Struct, array_like=True, frozen=True, gc=False):
    object: int
    """Position in `fingerprints`."""
    first_block: int
    block_count: int
    use_at: int
    """Position of the stream, as `position`."""


class Request(msgspec.Struct, array_like=True, frozen=True):
    stream: bytes
    """16 bytes, the same in all plans of one pass of one loader. It is over when its client goes, or by `ended`."""
    position: int
    """Items of the stream consumed so far, over all epochs."""
    fingerprints: list[bytes]
    uses: list[Use]
    fill_until: int
    evict_until: int
    """At most `fill_until`: a batch or two beyond what is being read already."""
    waited_s: float = 0.0
    steps: int = 0
    """Steps of training, and seconds that they waited for data, since the plan before."""
    ended: bool = False


class Reply(msgspec.Struct, array_like=True, frozen=True):
    accepted: int
    """So many of `uses` were dealt with. The rest is to be said again: too much is being filled, or what is in memory
    is used sooner."""
    settled: bool = False
    """All of it was in memory, and nothing had ever to go from there: plans change nothing for now."""

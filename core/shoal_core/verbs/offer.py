"""offer: a node tells another which blocks it has that the other should hold as well.

A store is a pull: whoever is offered a block and has room brings it by `fetch`, when its throttle allows. The answer
says for each whether it is there already; who hands over asks again until all are.
"""

from __future__ import annotations

import msgspec

KIND = 16

REFUSED, HELD, QUEUED = 0, 1, 2


class Block(msgspec.Struct, array_like=True, frozen=True, gc=False):
    key: bytes
    space: bytes
    """uid of its space."""
    size: int


class Request(msgspec.Struct, array_like=True, frozen=True):
    node: str
    """Who has them."""
    epoch: int
    reason: str
    """replica, repair, drain or hot."""
    blocks: list[Block]


class Reply(msgspec.Struct, array_like=True, frozen=True):
    states: bytes
    """One of REFUSED, HELD, QUEUED for each block."""
    epoch: int

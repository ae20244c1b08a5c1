"""Bytes that come behind a reply, each item straight into its place and checked while it is in the CPU's cache.

Small items are received several at once, in one system call; large ones in pieces, each hashed as it arrives. An item
whose answer is wider than what was asked for (whole pages around it) goes through memory of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shoal_core import digests, limits
from shoal_core.errors import ProtocolError
from shoal_core.verbs import get
from shoal_transport.interface import Channel

_TOGETHER_BYTES = 512 << 10
"""Received in one system call, then checked: what just arrived lies in the CPU's cache, where a check costs a third."""


class Ranged(Protocol):
    """A range of a block that somebody wants."""

    offset: int
    length: int
    target: memoryview | None
    """Where its bytes go; None: into memory of their own, which becomes `part`."""
    part: memoryview | None
    copied: bool


def receive(
    channel: Channel, payload_bytes: int, inline: Sequence[tuple[Ranged, get.Inline]], deadline: float
) -> list[bool]:
    """Receive all of a payload; for each item whether its bytes are those that its digests name."""
    if sum(answer.length for _, answer in inline) != payload_bytes:
        raise ProtocolError(f"get: a payload of {payload_bytes} bytes that the answers do not add up to")
    good: list[bool] = []
    start = 0
    while start < len(inline):
        end, size = start, 0
        while end < len(inline) and (end == start or size + inline[end][1].length <= _TOGETHER_BYTES):
            size += inline[end][1].length
            end += 1
        good += _together(channel, inline[start:end], deadline)
        start = end
    return good


def _together(channel: Channel, inline: Sequence[tuple[Ranged, get.Inline]], deadline: float) -> list[bool]:
    views: list[memoryview] = []
    for piece, answer in inline:
        if piece.target is not None and answer.length == piece.length and answer.offset == piece.offset:
            views.append(piece.target)
        elif answer.offset <= piece.offset and piece.offset + piece.length <= answer.offset + answer.length:
            views.append(memoryview(bytearray(answer.length)))
        else:
            raise ProtocolError("get: an inline answer that does not cover its range")
    if len(views) > 1:
        channel.receive_each(views, deadline)
        good = [digests.matches(view, answer.digests) for (_, answer), view in zip(inline, views, strict=True)]
    else:
        good = [_checked(channel, views[0], inline[0][1].digests, deadline)]
    for (piece, answer), view, right in zip(inline, views, good, strict=True):
        if right and view is not piece.target:
            first = piece.offset - answer.offset
            part = view[first : first + piece.length]
            if piece.target is not None:
                piece.target[:] = part
            else:
                piece.part = part.toreadonly()
                piece.copied = True
    return good


def _checked(channel: Channel, view: memoryview, table: bytes, deadline: float) -> bool:
    """Receive a large item piece by piece; whether all of it has its digests."""
    good = len(table) == digests.page_count(len(view)) * limits.DIGEST_BYTES
    for start in range(0, len(view), _TOGETHER_BYTES):
        part = view[start : start + _TOGETHER_BYTES]
        channel.receive_into(part, deadline)
        first = start // limits.PAGE_BYTES * limits.DIGEST_BYTES
        count = digests.page_count(len(part)) * limits.DIGEST_BYTES
        good = good and digests.matches(part, table[first : first + count])
    return good

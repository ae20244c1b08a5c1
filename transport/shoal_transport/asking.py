"""What is asked of a node for a gather, and what its answers mean: items to requests, replies to outcomes.

A request names objects by fingerprint. What a fingerprint stands for is said with the first request that names it to a
node; a node that forgot says UnknownObject and is told again. A request for what a node holds names keys alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from shoal_core import frame, verbs
from shoal_core.errors import (
    BadRequest,
    Corrupt,
    DeadlineExceeded,
    Forbidden,
    NodeGone,
    NotFound,
    ObjectChanged,
    ProtocolError,
    ShoalError,
    from_wire,
)
from shoal_core.gather import ABSENT, BAD, FINAL, GOT, Ask
from shoal_core.verbs import complain, fetch, get, resolve
from shoal_core.view import Node
from shoal_transport import receiving
from shoal_transport.interface import Channel
from shoal_transport.links import Links

_FINAL = (NotFound, Forbidden, ObjectChanged, BadRequest, DeadlineExceeded)
"""What no other node would say otherwise."""

_TOLD_MAX = 1 << 16
_COMPLAINT_S = 5.0


class Item:
    """A range of a block that is wanted; see `receiving.Ranged`. Filled in when it is there."""

    __slots__ = (
        "block", "claim", "copied", "error", "fingerprint", "key", "length", "node_id", "offset", "part", "source",
        "table", "target",
    )  # fmt: skip

    def __init__(
        self,
        key: bytes,
        fingerprint: bytes,
        claim: resolve.Wanted | None,
        block: int,
        offset: int,
        length: int,
        target: memoryview | None,
    ) -> None:
        self.key = key
        self.fingerprint = fingerprint
        self.claim = claim
        """What the fingerprint stands for, for a node that does not know; None: only its key is known."""
        self.block = block
        self.offset = offset
        self.length = length
        self.target = target
        self.part: memoryview | None = None
        self.copied = False
        self.table = b""
        """Digests of what came."""
        self.source = -1
        """get.SOURCE_..., as the node said; -1 while it is not there."""
        self.node_id = ""
        """Who gave it."""
        self.error: ShoalError | None = None
        """The last one that was heard."""

    def elsewhere(self) -> Item:
        """The same range, to be received where it does no harm: the item is there already, and in use."""
        return Item(self.key, self.fingerprint, None, self.block, self.offset, self.length, None)


class Told:
    """Which objects each node was told of: the next request need not say it again."""

    def __init__(self) -> None:
        self._known: dict[str, set[bytes]] = {}

    def claims(self, node_id: str, items: dict[bytes, resolve.Wanted | None]) -> list[resolve.Wanted | None]:
        """By fingerprint, in order; [] where all are known there. From now on they are."""
        known = self._known.setdefault(node_id, set())
        if len(known) > _TOLD_MAX:
            known.clear()
        if items.keys() <= known:
            return []
        known.update(items)
        return list(items.values())

    def forget(self, node_id: str) -> None:
        """The node forgot, or is another one."""
        self._known.pop(node_id, None)


def request(told: Told, ask: Ask, wanted: Sequence[Item], deadline: float, hops: int) -> tuple[int, bytes]:
    """(verb, body) of a request for these items."""
    milliseconds = max(1, int((deadline - time.monotonic()) * 1000))
    if ask.only_if_held:
        return fetch.KIND, verbs.encode(fetch.Request([item.key for item in wanted], milliseconds))
    numbers: dict[bytes, int] = {}
    claims: dict[bytes, resolve.Wanted | None] = {}
    items: list[get.Item] = []
    for item in wanted:
        number = numbers.setdefault(item.fingerprint, len(numbers))
        claims[item.fingerprint] = item.claim
        items.append(get.Item(number, item.block, item.offset, item.length))
    known = told.claims(ask.node.id, claims)
    return get.KIND, verbs.encode(get.Request(list(numbers), items, [], milliseconds, True, hops=hops, claims=known))


class Outcome:
    """What a reply brought: `results` by item, as `gather.Gather.answered` takes them."""

    __slots__ = ("corrupt", "epoch", "got", "hot", "load", "results")

    def __init__(self, epoch: int, load: float, hot: list[tuple[int, int]]) -> None:
        self.results: list[int] = []
        self.epoch = epoch
        self.load = load
        self.hot = hot
        self.got: list[int] = []
        """Items that are there now and were not before."""
        self.corrupt: list[get.Inline] = []


def outcome(
    ask: Ask,
    wanted: Sequence[Item],
    is_wanted: Callable[[int], bool],
    channel: Channel,
    reply: tuple[frame.Header, bytes],
    deadline: float,
) -> Outcome:
    """Decode a reply and receive its bytes. Raises what the node answered to the whole request."""
    header, body = reply
    answers: Any = verbs.decode_reply(fetch.KIND if ask.only_if_held else get.KIND, header, body)
    if len(answers.items) != len(wanted):
        raise ProtocolError(f"{ask.node.id}: {len(answers.items)} answers to {len(wanted)} items")
    inline: list[tuple[Item, get.Inline]] = []
    for number, item, answer in zip(ask.items, wanted, answers.items, strict=True):
        if isinstance(answer, get.Inline):
            inline.append((item if is_wanted(number) else item.elsewhere(), answer))
    good = receiving.receive(channel, header.payload_bytes, inline, deadline) if inline else []
    found = Outcome(answers.epoch, answers.load, [] if ask.only_if_held else answers.hot)
    arrived = iter(zip(inline, good, strict=True))
    for number, item, answer in zip(ask.items, wanted, answers.items, strict=True):
        error: ShoalError | None = None
        if isinstance(answer, get.Inline):
            (place, _), right = next(arrived)
            found.results.append(GOT if right else BAD)
            if not right:
                error = Corrupt(f"{ask.node.id}: block {item.block} does not match its digests")
                found.corrupt.append(answer)
            elif place is item:
                item.table, item.source, item.node_id, item.error = answer.digests, answer.source, ask.node.id, None
                found.got.append(number)
        elif isinstance(answer, get.Failed):
            error = from_wire(answer.code, answer.text)
            found.results.append(FINAL if isinstance(error, _FINAL) else ABSENT)
        else:
            error = NodeGone(f"{ask.node.id}: {getattr(answer, 'reason', 'cannot be given through this door')}")
            found.results.append(ABSENT)
        if error is not None and is_wanted(number):  # else another node's answer was the last word
            item.error = error
    return found


def complain_of(links: Links, node: Node, answers: Sequence[get.Inline]) -> None:
    """The node hashes its own copies; nobody waits for that."""
    deadline = time.monotonic() + _COMPLAINT_S

    def tell() -> None:
        try:
            for answer in answers:
                links.call(node, complain.KIND, complain.Request(answer.entry, answer.generation), deadline)
        except ShoalError:
            return

    threading.Thread(target=tell, name="shoal-complain", daemon=True).start()

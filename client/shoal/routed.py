"""Reads from many nodes: what this process knows of the cluster, and the way to its blocks without the node at home.

The view comes from whichever node answers (`view`), first the one that was connected to; each reply of a `get` says its
node's epoch, and a later one than ours makes us ask. A process whose home node is on its machine asks that node for
everything and comes here only when it fails; any other asks the blocks' owners directly, nearest first. What is left
after that is the origin's.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from shoal.attachment import Attachment
from shoal.objects import ObjectInfo
from shoal.pieces import Piece
from shoal.session import Session
from shoal.stats import ReadStats
from shoal_core import keys, limits, view
from shoal_core.errors import Corrupt, DeadlineExceeded, NodeGone, NotFound, ProtocolError, ShoalError
from shoal_core.gather import Gather
from shoal_core.router import Router
from shoal_core.routing import Attempt, Distance, Here
from shoal_core.verbs import get, resolve
from shoal_core.verbs import view as view_verb
from shoal_transport import links
from shoal_transport.asking import Item
from shoal_transport.gathering import Gathering

_WINDOW_BYTES = 4 * limits.PART_BYTES * limits.PARTS_AHEAD
_WINDOW_ITEMS = 16 * limits.PART_ITEMS
"""Of one gather: enough that each of some nodes has parts to work ahead on, and bounded."""

PATIENCE_S = 0.5
"""For a node at home, while there are others to ask."""

_LEARN_EVERY_S = 0.5
"""At most, where reads notice again and again that the view is old, or home lost."""

_ASK_S = 1.0
"""For a view: a node that does not give it within this does not know better than the next one."""


class Routed:
    """One per client. Thread-safe."""

    def __init__(
        self, stats: ReadStats, zone: str = "", rack: str = "", give_token: links.GiveToken = links.no_token
    ) -> None:
        self.home_id = ""
        """Id of the node that was connected to."""
        self.local = False
        """Whether it is on this machine, and this process where that node is."""
        self.lock = threading.Lock()
        self.links = links.Links(links.process_name(), give_token=give_token)
        self.gathering = Gathering(self.links, self.lock)
        self.router = Router(Here("", zone, rack), random.Random())
        self._stats = stats
        self._given = zone, rack
        self._learning = threading.Lock()
        self._learn_at = 0.0

    @property
    def active(self) -> bool:
        """Whether there is any other node than the one at home."""
        known = self.router.view
        return known is not None and any(
            node.id != self.home_id and node.status != "gone" and node.addresses for node in known.nodes
        )

    @property
    def epoch(self) -> int:
        """Of the view that is held; 0: none."""
        return self.router.epoch

    @property
    def late(self) -> bool:
        """Whether a node spoke of a later epoch than ours."""
        return self.gathering.late_epoch > self.router.epoch

    def heard(self, epoch: int) -> None:
        """A node spoke of its view."""
        if epoch > self.gathering.late_epoch:
            self.gathering.late_epoch = epoch

    def adopt(self, offered: view.View) -> None:
        """Take a view over, if it is later."""
        with self.lock:
            changed = self.router.adopt(offered)
            place = offered.position(self.home_id) if self.local else None
            zone, rack = self._given
            if place is not None and not zone:
                zone, rack = offered.nodes[place].zone, offered.nodes[place].rack
            self.router.here = Here(self.home_id if self.local else "", zone, rack)
        if changed:
            self.links.keep_only(offered)

    def attached(self, session: Session, attachment: Attachment) -> None:
        """The session is connected: the node there is at home, and says who the others are."""
        terms = attachment.terms
        self.home_id, self.local = terms.node, attachment.is_local
        self.router.without = ""
        if terms.epoch > self.epoch:
            self.refresh(session)
        session.patience_s = PATIENCE_S if self.active else None

    def refresh(self, session: Session) -> None:
        """The node at home is asked for a later view."""
        with contextlib.suppress(ShoalError):
            reply = session.call(view_verb.KIND, view_verb.Request(self.epoch), time.monotonic() + _ASK_S)
            if reply.view is not None:
                self.adopt(reply.view)
                session.patience_s = PATIENCE_S if self.active else None

    def lost_home(self, lost: bool) -> bool:
        """Whether nothing is asked of the node at home: it is lost, and on this machine, so its other doors are too."""
        self.router.without = self.home_id if lost and self.local else ""
        return bool(self.router.without)

    def learn_soon(self, session: Session) -> None:
        """Get a later view, in a thread of its own. Reads go on by the one at hand."""

        def learn() -> None:
            before = self.epoch
            if session.attachment is not None:
                self.refresh(session)
            if self.epoch == before:
                self.learn(time.monotonic() + _ASK_S)

        now = time.monotonic()
        if now >= self._learn_at:
            self._learn_at = now + _LEARN_EVERY_S
            threading.Thread(target=learn, name="shoal-view", daemon=True).start()

    def learn(self, deadline: float) -> bool:
        """Ask the nodes for a later view, the nearest first, but none that is left alone; whether one had it.

        At once False while another thread does the same.
        """
        before = self.epoch
        if not self._learning.acquire(blocking=False):
            return False
        try:
            until = min(deadline, time.monotonic() + _ASK_S)
            reply = self.call(view_verb.KIND, view_verb.Request(self.epoch), until, answering_only=True)
            if reply.view is not None:
                self.adopt(reply.view)
        except ShoalError:
            return False
        finally:
            self._learning.release()
        return self.epoch > before

    def call(self, kind: int, request: Any, deadline: float, *, answering_only: bool = False) -> Any:
        """One verb, of the nearest node that answers; any node can answer it. Raises the last NodeGone if none does.

        `answering_only`: those that are left alone at present are not asked even at last.
        """
        error: ShoalError = NodeGone("no node of the cluster answers")
        for node in self._nodes(answering_only):
            with self.lock:
                self.router.began(node, time.monotonic_ns())
            try:
                reply = self.links.call(node, kind, request, deadline)
            except (NodeGone, ProtocolError, DeadlineExceeded) as failed:
                error = failed
                with self.lock:
                    self.router.failed(node, time.monotonic_ns())
                continue
            except BaseException:
                with self.lock:
                    self.router.cancelled(node)
                raise
            with self.lock:
                self.router.peer(node.id).succeeded()  # how long it took says nothing of how long blocks take
            return reply
        raise error

    def _nodes(self, answering_only: bool) -> list[view.Node]:
        with self.lock:
            known = self.router.view
            if known is None:
                return []
            now_ns = time.monotonic_ns()
            places = [
                place
                for place, node in enumerate(known.nodes)
                if not (answering_only and self.router.is_down(node, now_ns))
            ]
            order = self.router.order(places, now_ns)
            return [known.nodes[attempt.place] for attempt in order if attempt.place is not None]

    # Reads

    def read(self, pieces: Sequence[Piece], errors: dict[int, ShoalError], deadline: float) -> list[Piece]:
        """Complete the pieces; those that no node gives are left. Errors that are final go into `errors`."""
        left: list[Piece] = []
        start = 0
        while start < len(pieces):
            end, size = start, 0
            while end < len(pieces) and end - start < _WINDOW_ITEMS and (end == start or size < _WINDOW_BYTES):
                size += pieces[end].length
                end += 1
            window = [piece for piece in pieces[start:end] if not piece.done and piece.request not in errors]
            left += self._window(window, errors, deadline)
            start = end
        return left

    def touch(
        self, blocks: Sequence[tuple[ObjectInfo, int, str]], part_items: int, deadline: float
    ) -> list[ShoalError | None]:
        """Have nodes bring blocks, whoever else has them: of each block one byte is asked of the node that is named.

        Object, number of the block, id of the node; in order, the error of each that did not come.
        """
        items = [_item(Piece(info, block, 0, 1, None, 0)) for info, block, _ in blocks]
        with self.lock:
            known = self.router.view
            assert known is not None, "there is nobody to ask"
            places = {node.id: place for place, node in enumerate(known.nodes)}
            ways = [
                [Attempt(places[node_id], Distance.FAR)] if node_id in places else [] for _, _, node_id in blocks
            ]  # fmt: skip
            gather = Gather(self.router, [1] * len(items), ways, part_items=part_items)
        late: ShoalError = NodeGone("it could not be asked")
        try:
            self.gathering.run(gather, items, deadline)
        except DeadlineExceeded as error:
            late = error
        return [None if item.source >= 0 else item.error or late for item in items]

    def _window(self, pieces: list[Piece], errors: dict[int, ShoalError], deadline: float) -> list[Piece]:
        if not pieces:
            return []
        items = [_item(piece) for piece in pieces]
        with self.lock:
            ways = self._ways(pieces, items)
            room = self.links.part_bytes
            # Of small ranges more blocks may be touched at once: mostly they are in memory already.
            count = limits.WARM_FACTOR * room // max(piece.info.block_size_bytes for piece in pieces)
            count = min(limits.PART_ITEMS, max(1, count))
            lengths = [item.length for item in items]
            gather = Gather(self.router, lengths, ways, part_bytes=room, part_items=count)
        try:
            origin = self.gathering.run(gather, items, deadline)
        except DeadlineExceeded as error:
            origin = []
            for piece, item in zip(pieces, items, strict=True):
                if item.source < 0:
                    errors.setdefault(piece.request, _too_late(item, error))
        left: list[Piece] = []
        hits = self._stats.hits
        for piece, item in zip(pieces, items, strict=True):
            if item.source < 0:
                continue
            hits["tcp" if item.source == get.SOURCE_DRAM else get.SOURCE_NAMES[item.source]] += 1
            piece.part, piece.copied, piece.done = item.part, item.copied, True
            piece.node_id = item.node_id
        over = set(origin)
        for number, (piece, item) in enumerate(zip(pieces, items, strict=True)):
            if number in over:
                piece.error = item.error
                left.append(piece)
            elif item.source < 0 and piece.request not in errors:
                errors[piece.request] = item.error or NotFound(f"{piece.info.url}: not in the cache")
        self._stats.corrupt_pages += self.gathering.take_corrupt()
        return left

    def _ways(self, pieces: list[Piece], items: list[Item]) -> list[list[Attempt]]:
        """Whom to ask for each."""
        wanted = [(item.key, piece.info.replica_count) for piece, item in zip(pieces, items, strict=True)]
        return self.router.ways(wanted, time.monotonic_ns())

    def close(self) -> None:
        self.gathering.closed = True
        self.links.close()

    def abandon(self) -> None:
        """In a forked child."""
        self.lock = threading.Lock()
        self._learning = threading.Lock()
        self.links.abandon()
        self.gathering = Gathering(self.links, self.lock)


def _item(piece: Piece) -> Item:
    info = piece.info
    claim = resolve.Wanted(info.url, info.size, info.etag)
    key = keys.block_key(info.fingerprint, piece.block)
    return Item(key, info.fingerprint, claim, piece.block, piece.offset, piece.length, piece.target)


def _too_late(item: Item, error: DeadlineExceeded) -> ShoalError:
    """What a node said for good stands; what it said while others could still be asked is part of the story."""
    if item.error is None or isinstance(item.error, (NodeGone, Corrupt, ProtocolError)):
        return DeadlineExceeded(f"{error}; heard last: {item.error}") if item.error is not None else error
    return item.error

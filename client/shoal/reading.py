"""The slow half of a read: pieces without a held grant are asked for, received, checked, and put in their places.

Pieces travel in batches, the next blocks named as `ahead` so that the node fills them meanwhile. A granted piece is
copied out of shared memory, or viewed; an inline one is received straight into its target where exactly that was sent,
and checked against the digests that came with it. What the node cannot give (it is gone, it cannot hold the block, its
copy is corrupt twice) is read from the origin, within the same deadline.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable

from shoal.attachment import Attachment
from shoal.grants import Grant
from shoal.objects import ObjectInfo
from shoal.origin_fallback import OriginReader
from shoal.pieces import Piece
from shoal.session import Session
from shoal.stats import ReadStats
from shoal_core import digests, limits, verbs
from shoal_core.errors import Corrupt, DeadlineExceeded, NodeGone, ProtocolError, ShoalError, UnknownObject, from_wire
from shoal_core.verbs import complain, get, resolve
from shoal_transport.interface import Channel

log = logging.getLogger("shoal")

_COPY_UNLOCKED_BYTES = 256 << 10
"""From here a copy is long enough to be made outside the lock, on a pinned view."""

_TOGETHER_BYTES = 512 << 10
"""Received in one system call, then checked: what just arrived lies in the CPU's cache, where a check costs a third."""

_PARTS_AHEAD = 4
_PART_ITEMS = 64
_PART_BYTES = 16 << 20
"""A batch whose bytes come through the connection is asked for in parts, so many of them ahead of what was received:
small enough that both sides work at once (blocks are sent while the next are filled), large enough that a part's own
cost does not show."""

_COLD_PARTS = 16
"""Read-ahead goes on for so many replies after one that had to be waited for: when it works, nothing is waited for."""

_WARM_FACTOR = 4
"""While everything asked for was in the node's memory, small ranges may touch so many times more blocks at once."""

_OBJECTS_FOLLOWED = 1024

_CORRUPT_TRIES = 2


class Reading:
    """Reads pieces over one session, with the origin as the way out."""

    def __init__(self, session: Session, origin: OriginReader, stats: ReadStats) -> None:
        self._session = session
        self._grants = session.grants
        self._origin = origin
        self._stats = stats
        self._said = False
        self._next: dict[bytes, int] = {}
        """By object that was lately read block by block: the block that comes next."""
        self._cold = _COLD_PARTS
        """Replies for which it is still worth naming what will be wanted next."""

    def read(self, pieces: list[Piece], deadline: float) -> dict[int, ShoalError]:
        """Complete every piece; errors by the read they belong to."""
        errors: dict[int, ShoalError] = {}
        started = time.perf_counter()
        start = 0
        while start < len(pieces):
            end = self._batch_end(pieces, start)
            missing = self._not_held(pieces[start:end])
            while missing:
                self._complete(missing, pieces[end:], errors, deadline)
                missing = [piece for piece in missing if not piece.done and piece.request not in errors]
            start = end
        self._stats.wait_s += time.perf_counter() - started
        return errors

    def resolve_again(self, infos: list[ObjectInfo], deadline: float) -> None:
        """Tell a node that forgot them what these fingerprints stand for."""
        wanted = [resolve.Wanted(info.url, info.size, info.etag) for info in infos]
        self._session.call(resolve.KIND, resolve.Request(wanted, _milliseconds(deadline)), deadline)

    def say_once(self, error: Exception) -> None:
        """A fallback is visible: in the log once, in the counters always."""
        if not self._said:
            self._said = True
            log.warning("reading from the origin directly: %s", error)

    def _batch_end(self, pieces: list[Piece], start: int) -> int:
        """As much as may be under way at once: one request where blocks are granted, else _PARTS_AHEAD of them."""
        terms = self._session.hello
        parts = _PARTS_AHEAD if terms is not None and not terms.grants else 1
        size, payload = parts * self._request_bytes_max(), parts * limits.BATCH_BYTES_MAX
        return _end(pieces, start, size, payload, limits.BATCH_ITEMS_MAX)

    def _parts(self, pieces: list[Piece]) -> list[list[Piece]]:
        """One request each: the node prepares one while we use the answers to another."""
        parts: list[list[Piece]] = []
        start = 0
        while start < len(pieces):
            end = _end(pieces, start, self._request_bytes_max(), _PART_BYTES, _PART_ITEMS)
            parts.append(pieces[start:end])
            start = end
        return parts

    def _request_bytes_max(self) -> int:
        """Of the blocks that one request touches: the node must hold all of them at once, filled first if need be."""
        terms = self._session.hello
        size = terms.batch_bytes_max if terms is not None else limits.BATCH_BYTES_MAX
        return size if self._cold else size * _WARM_FACTOR

    def _complete(
        self, missing: list[Piece], later: list[Piece], errors: dict[int, ShoalError], deadline: float
    ) -> None:
        try:
            try:
                self._ask(missing, later, errors, deadline)
            except (UnknownObject, NodeGone):
                # The node forgot what a fingerprint stands for, or only an old connection ended, or it came back.
                missing = [piece for piece in missing if not piece.done]
                self.resolve_again(list({piece.info.fingerprint: piece.info for piece in missing}.values()), deadline)
                self._ask(missing, later, errors, deadline)
        except DeadlineExceeded as error:
            for piece in missing:
                if not piece.done:
                    errors.setdefault(piece.request, error)
        except (NodeGone, ProtocolError, UnknownObject) as error:
            for piece in missing:
                if not piece.done:
                    self._from_origin(piece, error, errors, deadline)

    def _ask(self, missing: list[Piece], later: list[Piece], errors: dict[int, ShoalError], deadline: float) -> None:
        """Ask for these pieces; those whose bytes arrived are done."""
        answered: list[tuple[Piece, get.Answer]] = []
        with self._grants.lock:
            get_number = self._grants.begin_get()
            self._grants.make_room(sum(map(_block_bytes, missing)))
        try:
            # Whatever fails inside, the channel is closed: replies that nobody waits for any more may still come.
            with self._session.channel(deadline) as (channel, attachment):
                parts = self._parts(missing)
                posted = asked = 0
                for number, part in enumerate(parts):
                    while posted < min(len(parts), number + _PARTS_AHEAD):
                        asked += len(parts[posted])
                        following = itertools.chain(itertools.islice(missing, asked, None), later)
                        request = self._request(parts[posted], following, deadline)
                        channel.post(get.KIND, verbs.encode(request), deadline)
                        posted += 1
                    answered += self._take(channel, attachment, part, deadline)
        finally:
            with self._grants.lock:
                self._grants.end_get(get_number)
        for piece, answer in answered:
            if piece.done:
                continue
            if isinstance(answer, get.Failed):
                errors.setdefault(piece.request, from_wire(answer.code, answer.text))
            elif isinstance(answer, get.Bypass):
                self._from_origin(piece, NodeGone(answer.reason), errors, deadline)
            elif isinstance(answer, get.Inline):
                self._corrupt(piece, answer, errors, deadline)

    def _request(self, part: list[Piece], following: Iterable[Piece], deadline: float) -> get.Request:
        numbers: dict[bytes, int] = {}
        items = [
            get.Item(numbers.setdefault(piece.info.fingerprint, len(numbers)), piece.block, piece.offset, piece.length)
            for piece in part
        ]
        ahead = self._ahead(following, numbers) if self._cold else []
        likely = self._likely(part[0]) if len(part) == 1 else []
        with self._grants.lock:
            released, touches = self._grants.report()
        return get.Request(list(numbers), items, ahead, _milliseconds(deadline), False, released, touches, likely)

    def _likely(self, piece: Piece) -> list[get.Ahead]:
        """What comes next, for a reader who asked for the block before this one the last time."""
        fingerprint, block = piece.key
        goes_on = self._next.get(fingerprint) == block
        if len(self._next) > _OBJECTS_FOLLOWED:
            self._next.clear()
        self._next[fingerprint] = block + 1
        count = min(limits.LIKELY_BLOCKS_MAX, limits.BATCH_BYTES_MAX // piece.info.block_size_bytes)
        return [get.Ahead(0, block + 1, count)] if goes_on else []

    def _take(
        self, channel: Channel, attachment: Attachment, part: list[Piece], deadline: float
    ) -> list[tuple[Piece, get.Answer]]:
        """The reply to the request for these pieces, and the bytes with it."""
        header, body = channel.take(deadline)
        reply = verbs.decode_reply(get.KIND, header, body)
        if len(reply.items) != len(part):
            raise ProtocolError(f"get: {len(reply.items)} answers to {len(part)} items")
        answered = list(zip(part, reply.items, strict=True))
        inline = [(piece, answer) for piece, answer in answered if isinstance(answer, get.Inline)]
        if inline or header.payload_bytes:
            self._receive(channel, header.payload_bytes, inline, deadline)
        granted = [(piece, answer) for piece, answer in answered if isinstance(answer, get.Grant)]
        if granted:
            self._use_grants(attachment, granted, deadline)
        cold = any(answer.source != get.SOURCE_DRAM for _, answer in itertools.chain(granted, inline))
        for also in reply.also:
            fingerprint = part[0].info.fingerprint
            mapping = attachment.mapping(also.grant.segment, deadline)
            with self._grants.lock:
                self._grants.add(Grant((fingerprint, also.block), also.grant, mapping, attachment.holder))
            self._next[fingerprint] = also.block + 1
        self._cold = _COLD_PARTS if cold else max(0, self._cold - 1)
        return answered

    def _ahead(self, following: Iterable[Piece], numbers: dict[bytes, int]) -> list[get.Ahead]:
        ahead: list[get.Ahead] = []
        room = min(limits.READ_AHEAD_BYTES, self._session.hello.batch_bytes_max if self._session.hello else 0)
        for piece in following:
            room -= _block_bytes(piece)
            if room < 0 or len(ahead) >= 256:
                break
            number = numbers.setdefault(piece.info.fingerprint, len(numbers))
            last = ahead[-1] if ahead else None
            if last is not None and last.object == number and last.block + last.count == piece.block:
                ahead[-1] = get.Ahead(number, last.block, last.count + 1)
            else:
                ahead.append(get.Ahead(number, piece.block, 1))
        return ahead

    # Bytes under a grant

    def _not_held(self, pieces: list[Piece]) -> list[Piece]:
        """Those that no held grant covers; the others are done."""
        missing: list[Piece] = []
        found: list[tuple[Piece, memoryview | None]] = []
        by_key, touch = self._grants.by_key, self._grants.touch
        with self._grants.lock:
            for piece in pieces:
                grant = by_key.get((piece.info.fingerprint, piece.block))
                if grant is None:
                    missing.append(piece)
                    continue
                touch(grant)
                found.append((piece, self._copy_or_pin(piece, grant)))
        self._stats.hits["shared memory"] += len(found)
        for piece, view in found:
            self._finish(piece, view)
        return missing

    def _use_grants(self, attachment: Attachment, granted: list[tuple[Piece, get.Grant]], deadline: float) -> None:
        """Those that were given back while they were under way are left undone: they are asked for again."""
        used: list[tuple[Piece, int, memoryview | None]] = []
        grants, holder = self._grants, attachment.holder
        mappings = [attachment.mapping(answer.segment, deadline) for _, answer in granted]
        with grants.lock:
            for (piece, answer), mapping in zip(granted, mappings, strict=True):
                if piece.offset + piece.length > answer.length:
                    raise ProtocolError("get: a grant of less than its block")
                grant = grants.add(Grant((piece.info.fingerprint, piece.block), answer, mapping, holder))
                if grant is None:
                    continue
                if not answer.keep:
                    grants.give_back_soon(grant)
                used.append((piece, answer.source, self._copy_or_pin(piece, grant)))
        hits = self._stats.hits
        for piece, source, view in used:
            hits["shared memory" if source == get.SOURCE_DRAM else get.SOURCE_NAMES[source]] += 1
            self._finish(piece, view)

    @staticmethod
    def _copy_or_pin(piece: Piece, grant: Grant) -> memoryview | None:
        """Under the lock: copy a small piece now, or pin the block for what follows outside."""
        if piece.target is not None and piece.length < _COPY_UNLOCKED_BYTES:
            piece.target[:] = grant.memory[piece.offset : piece.offset + piece.length]
            return None
        return grant.view()[piece.offset : piece.offset + piece.length]

    @staticmethod
    def _finish(piece: Piece, view: memoryview | None) -> None:
        if view is not None:
            if piece.target is not None:
                piece.target[:] = view
            else:
                piece.part = view
        piece.done = True

    # Bytes through the connection

    def _receive(
        self, channel: Channel, payload_bytes: int, inline: list[tuple[Piece, get.Inline]], deadline: float
    ) -> None:
        if sum(answer.length for _, answer in inline) != payload_bytes:
            raise ProtocolError(f"get: a payload of {payload_bytes} bytes that the answers do not add up to")
        start = 0
        while start < len(inline):
            end, size = start, 0
            while end < len(inline) and (end == start or size + inline[end][1].length <= _TOGETHER_BYTES):
                size += inline[end][1].length
                end += 1
            self._receive_together(channel, inline[start:end], deadline)
            start = end

    def _receive_together(self, channel: Channel, inline: list[tuple[Piece, get.Inline]], deadline: float) -> None:
        """Several in one system call; each is checked while it is in the CPU's cache."""
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
        hits = self._stats.hits
        for (piece, answer), view in zip(inline, views, strict=True):
            if len(views) == 1:
                good = _receive_checked(channel, view, answer.digests, deadline)
            else:
                good = digests.matches(view, answer.digests)
            if not good:
                continue
            if view is not piece.target:
                first = piece.offset - answer.offset
                part = view[first : first + piece.length]
                if piece.target is not None:
                    piece.target[:] = part
                else:
                    piece.part = part.toreadonly()
                    piece.copied = True
            hits[channel.door if answer.source == get.SOURCE_DRAM else get.SOURCE_NAMES[answer.source]] += 1
            piece.done = True

    def _corrupt(self, piece: Piece, answer: get.Inline, errors: dict[int, ShoalError], deadline: float) -> None:
        """Bytes that did not match: the node is told, and the piece is asked for again, then read from the origin."""
        self._stats.corrupt_pages += 1
        piece.tries += 1
        try:
            self._session.call(complain.KIND, complain.Request(answer.entry, answer.generation), deadline)
        except DeadlineExceeded as error:
            errors.setdefault(piece.request, error)
        except ShoalError:
            piece.tries = _CORRUPT_TRIES
        if piece.tries >= _CORRUPT_TRIES:
            error = Corrupt(f"{piece.info.url}: block {piece.block} does not match its digests")
            self._from_origin(piece, error, errors, deadline)

    # Without the node

    def _from_origin(self, piece: Piece, reason: Exception, errors: dict[int, ShoalError], deadline: float) -> None:
        self.say_once(reason)
        self._stats.fallbacks += 1
        target = piece.target
        if target is None:
            target = memoryview(bytearray(piece.length))
            piece.part = target.toreadonly()
            piece.copied = True
        try:
            self._origin.read(piece.info, piece.object_offset, target, deadline)
        except ShoalError as error:
            errors.setdefault(piece.request, error)
            return
        self._stats.hits["direct"] += 1
        piece.done = True


def _block_bytes(piece: Piece) -> int:
    info = piece.info
    return min(info.block_size_bytes, info.size - piece.block * info.block_size_bytes)


def _end(pieces: list[Piece], start: int, size_max: int, payload_max: int, count_max: int) -> int:
    """Where a request from `start` on ends: blocks within `size_max`, ranges within `payload_max`, one at least."""
    size = payload = 0
    stop = min(len(pieces), start + count_max)
    for end in range(start, stop):
        piece = pieces[end]
        info = piece.info
        payload += piece.length
        size += min(info.block_size_bytes, info.size - piece.block * info.block_size_bytes)
        if end > start and (size > size_max or payload > payload_max):
            return end
    return stop


def _receive_checked(channel: Channel, view: memoryview, table: bytes, deadline: float) -> bool:
    """Receive a large item piece by piece; whether all of it has its digests."""
    good = len(table) == digests.page_count(len(view)) * limits.DIGEST_BYTES
    for start in range(0, len(view), _TOGETHER_BYTES):
        part = view[start : start + _TOGETHER_BYTES]
        channel.receive_into(part, deadline)
        first = start // limits.PAGE_BYTES * limits.DIGEST_BYTES
        count = digests.page_count(len(part)) * limits.DIGEST_BYTES
        good = good and digests.matches(part, table[first : first + count])
    return good


def _milliseconds(deadline: float) -> int:
    return max(1, int((deadline - time.monotonic()) * 1000))

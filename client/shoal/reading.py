"""The slow half of a read: pieces without a held grant are asked for, received, checked, and put in their places.

Pieces travel in batches, the next blocks named as `ahead` so that the node fills them meanwhile. A granted piece is
copied out of shared memory, or viewed; an inline one is received straight into its target where exactly that was sent,
and checked against the digests that came with it. What the node cannot give (it is gone, it cannot hold the block, its
copy is corrupt twice) is read from the other nodes, or else the origin, within the same deadline. Where the origin does
not help either, all of them are tried again until then (see `patience`).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Sequence

from shoal import direct
from shoal.attachment import Attachment
from shoal.grants import Grant
from shoal.objects import ObjectInfo
from shoal.origin_fallback import OriginReader
from shoal.patience import PASSING, Patience
from shoal.pieces import Piece, batch_end, block_bytes
from shoal.routed import Routed
from shoal.session import Session, Silent
from shoal.stats import ReadStats
from shoal_core import limits, verbs
from shoal_core.errors import (
    Corrupt,
    DeadlineExceeded,
    NodeGone,
    ProtocolError,
    ShoalError,
    TokenExpired,
    UnknownObject,
    from_wire,
)  # fmt: skip
from shoal_core.verbs import complain, get, resolve
from shoal_transport import receiving
from shoal_transport.interface import Channel

log = logging.getLogger("shoal")

_COPY_UNLOCKED_BYTES = 256 << 10
"""From here a copy is long enough to be made outside the lock, on a pinned view."""

_COLD_PARTS = 16
"""Read-ahead goes on for so many replies after one that had to be waited for: when it works, nothing is waited for."""

_OBJECTS_FOLLOWED = 1024

_CORRUPT_TRIES = 2


class Reading:
    """Reads pieces over one session, with the origin as the way out."""

    def __init__(self, session: Session, origin: OriginReader, stats: ReadStats, routed: Routed) -> None:
        self._session = session
        self._grants = session.grants
        self._origin = origin
        self._stats = stats
        self._routed = routed
        self._said = self._said_waiting = False
        self._next: dict[bytes, int] = {}
        """By object that was lately read block by block: the block that comes next."""
        self._cold = _COLD_PARTS
        """Replies for which it is still worth naming what will be wanted next."""

    def read(self, pieces: list[Piece], deadline: float) -> dict[int, ShoalError]:
        """Complete every piece; errors by the read they belong to."""
        errors: dict[int, ShoalError] = {}
        started = time.perf_counter()
        if self._routed.late:
            self._routed.learn_soon(self._session)
        self._read(pieces, errors, deadline)
        if errors and self._session.reached:
            self._read_again(pieces, errors, deadline)
        self._stats.wait_s += time.perf_counter() - started
        return errors

    def _read_again(self, pieces: list[Piece], errors: dict[int, ShoalError], deadline: float) -> None:
        """What neither a node nor the origin gave, until one does, says something of the object, or the time is up."""
        waiting = Patience(deadline)
        while nowhere := {piece.request for piece in pieces if piece.nowhere}:
            if self._session.closed or not waiting.pause():
                return
            if not self._said_waiting:
                self._said_waiting = True
                log.warning("trying the nodes and the origin until the deadline: %s", errors[min(nowhere)])
            again = [piece for piece in pieces if piece.request in nowhere and not piece.done]
            for piece in again:
                piece.nowhere = False
                errors.pop(piece.request, None)
            self._read(again, errors, deadline)

    def _read(self, pieces: list[Piece], errors: dict[int, ShoalError], deadline: float) -> None:
        """One try."""
        start = 0
        while start < len(pieces):
            if self._routed.active and not self._at_home():
                self._elsewhere(pieces[start:], None, errors, deadline)
                break
            end = self._batch_end(pieces, start)
            missing = self._not_held(pieces[start:end])
            while missing:
                self._complete(missing, pieces[end:], errors, deadline)
                missing = [piece for piece in missing if not piece.done and piece.request not in errors]
            start = end

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
        """As much as may be under way at once: one request where blocks are granted, else PARTS_AHEAD of them."""
        terms = self._session.hello
        parts = limits.PARTS_AHEAD if terms is not None and not terms.grants else 1
        size, payload = parts * self._request_bytes_max(), parts * limits.BATCH_BYTES_MAX
        return batch_end(pieces, start, size, payload, limits.BATCH_ITEMS_MAX)

    def _parts(self, pieces: list[Piece]) -> list[list[Piece]]:
        """One request each: the node prepares one while we use the answers to another."""
        parts: list[list[Piece]] = []
        start = 0
        while start < len(pieces):
            end = batch_end(pieces, start, self._request_bytes_max(), limits.PART_BYTES, limits.PART_ITEMS)
            parts.append(pieces[start:end])
            start = end
        return parts

    def _request_bytes_max(self) -> int:
        """Of the blocks that one request touches: the node must hold all of them at once, filled first if need be."""
        terms = self._session.hello
        size = terms.batch_bytes_max if terms is not None else limits.BATCH_BYTES_MAX
        return size if self._cold else size * limits.WARM_FACTOR

    def _complete(
        self, missing: list[Piece], later: list[Piece], errors: dict[int, ShoalError], deadline: float
    ) -> None:
        try:
            try:
                self._ask(missing, later, errors, deadline)
            except Silent:
                raise
            except (UnknownObject, NodeGone, TokenExpired):
                # The node forgot what a fingerprint stands for, or only an old connection ended, or it came back.
                missing = [piece for piece in missing if not piece.done]
                self.resolve_again(list({piece.info.fingerprint: piece.info for piece in missing}.values()), deadline)
                self._ask(missing, later, errors, deadline)
        except DeadlineExceeded as error:
            for piece in missing:
                if not piece.done:
                    errors.setdefault(piece.request, error)
        except (NodeGone, ProtocolError, UnknownObject, TokenExpired) as error:
            self._elsewhere(missing, error, errors, deadline)

    def _ask(self, missing: list[Piece], later: list[Piece], errors: dict[int, ShoalError], deadline: float) -> None:
        """Ask for these pieces; those whose bytes arrived are done."""
        answered: list[tuple[Piece, get.Answer]] = []
        with self._grants.lock:
            get_number = self._grants.begin_get()
            self._grants.make_room(sum(map(block_bytes, missing)))
        try:
            # Whatever fails inside, the channel is closed: replies that nobody waits for any more may still come.
            with self._session.channel(deadline) as (channel, attachment):
                parts = self._parts(missing)
                posted = asked = 0
                for number, part in enumerate(parts):
                    while posted < min(len(parts), number + limits.PARTS_AHEAD):
                        asked += len(parts[posted])
                        following = itertools.chain(itertools.islice(missing, asked, None), later)
                        request = self._request(parts[posted], following, deadline)
                        channel.post(get.KIND, verbs.encode(request), deadline)
                        posted += 1
                    answered += self._take(channel, attachment, part, deadline)
        finally:
            with self._grants.lock:
                self._grants.end_get(get_number)
        refused: list[Piece] = []
        for piece, answer in answered:
            if piece.done:
                continue
            if isinstance(answer, get.Failed) and answer.code == NodeGone.code:
                refused.append(piece)
            elif isinstance(answer, get.Failed):
                errors.setdefault(piece.request, from_wire(answer.code, answer.text))
            elif isinstance(answer, get.Bypass):
                piece.error = NodeGone(answer.reason)
                refused.append(piece)
            elif isinstance(answer, get.Inline):
                self._corrupt(piece, answer, errors, deadline)
        if refused:
            self._elsewhere(refused, None, errors, deadline)

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
        if self._routed.active:
            self._session.await_reply(channel, attachment, deadline)
        header, body = channel.take(deadline)
        reply = verbs.decode_reply(get.KIND, header, body)
        self._routed.heard(reply.epoch)
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
            room -= block_bytes(piece)
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
        hits = self._stats.hits
        good = receiving.receive(channel, payload_bytes, inline, deadline)
        for (piece, answer), right in zip(inline, good, strict=True):
            if right:
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
            self._elsewhere([piece], error, errors, deadline)

    # Without the node

    def _at_home(self) -> bool:
        """Whether the home node is on this machine, and answers: then it is asked for everything."""
        session = self._session
        if session.hello is None:
            session.attach_soon()
        return session.is_local and not session.suspected

    def _elsewhere(
        self, pieces: Sequence[Piece], reason: Exception | None, errors: dict[int, ShoalError], deadline: float
    ) -> None:
        """From the other nodes, if there are any, and then from the origin."""
        left = [piece for piece in pieces if not piece.done and piece.request not in errors]
        if self._routed.active:
            if self._routed.lost_home(not self._at_home()):
                self._routed.learn_soon(self._session)
            left = self._routed.read(left, errors, deadline)
            if left and self._routed.learn(deadline):  # the others may have other addresses now
                left = self._routed.read(left, errors, deadline)
        for piece in left:
            why = piece.error or reason or NodeGone(f"{piece.info.url}: no node gives it")
            self._from_origin(piece, why, errors, deadline)

    def _from_origin(self, piece: Piece, reason: Exception, errors: dict[int, ShoalError], deadline: float) -> None:
        self.say_once(reason)
        self._stats.fallbacks += 1
        target = piece.target
        if target is None:
            target = memoryview(bytearray(piece.length))
            piece.part = target.toreadonly()
            piece.copied = True
        try:
            direct.read(self._origin, piece.info, piece.object_offset, target, deadline)
        except PASSING as error:
            said = type(error)(f"{error} (read there because {reason})")
            piece.nowhere = errors.setdefault(piece.request, said) is said
            return
        except ShoalError as error:
            errors.setdefault(piece.request, error)
            return
        self._stats.hits["direct"] += 1
        piece.done = True


def _milliseconds(deadline: float) -> int:
    return max(1, int((deadline - time.monotonic()) * 1000))

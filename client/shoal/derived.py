"""Derived objects: bytes made of other objects (an index of a shard, the tokens of a text), kept in the cache by name.

A derived object has no origin. It lies in the cache as blocks like any other object's, survives restarts of the node
like them, and may be evicted like them; whoever misses it makes it again. So a name must say everything that decides
the content: versions of what it was made of, options, the version of the code that makes it.

Under a name lie two objects: the head, of a size that everybody knows, holds size and digest of the body; the body's
version is that digest. Fingerprints follow from such claims without a question to any origin. Body blocks are stored
first and the head last, so a store that was interrupted is found by nobody. Two processes that make one object at once
both succeed: the second finds the blocks there. What the cache does not keep (no node, no room) stays in this process'
memory up to a limit, and is said once in the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from shoal import objects
from shoal.objects import ObjectInfo
from shoal_core import keys, limits
from shoal_core.errors import (
    BadRequest,
    Corrupt,
    DeadlineExceeded,
    NodeGone,
    NoSpace,
    NotFound,
    ProtocolError,
    ShoalError,
    UnknownObject,
)  # fmt: skip
from shoal_core.verbs import evict, resolve, store

if TYPE_CHECKING:
    from shoal.client import Client

log = logging.getLogger("shoal")

Buffer = bytes | bytearray
Build = Callable[[], Buffer | Iterable[Buffer]]
"""Makes the content, whole or part by part."""

_HEAD = struct.Struct("<8sQ16s")
_MAGIC = b"shoal-1\0"
_NO_SPACE = bytes(8)
_FRAME_MARGIN_BYTES = 1024
_REMEMBERED_BYTES = 256 * limits.MIB
"""What the cache did not keep, per process; the oldest is made again."""
_TOGETHER = 1024
"""Objects looked up at once."""
_AT_ONCE_BYTES = limits.BATCH_BYTES_MAX

_NOT_KEPT = NodeGone, NoSpace, NotFound, DeadlineExceeded, ProtocolError, UnknownObject, Corrupt
"""Reasons for which the cache does not keep something or give it, none of which fails whoever wants it: it is made."""

_remembered: OrderedDict[str, Buffer] = OrderedDict()
_lock = threading.Lock()
"""Guards `_remembered`."""
_said: list[str] = []


class Content:
    """Bytes on their way into the cache: all of them once in memory, with their digest."""

    __slots__ = ("data", "etag")

    def __init__(self, content: Buffer | Iterable[Buffer]) -> None:
        if isinstance(content, bytes | bytearray):
            self.data: Buffer = content
        else:
            self.data = bytearray()
            for part in content:
                self.data += part
        self.etag = hashlib.blake2b(self.data, digest_size=16).hexdigest()
        """The version of the object that these bytes are."""


def load(client: Client, name: str, build: Build) -> Buffer:
    """The content kept under the name, whole and verified; if there is none it is built, and kept."""
    return load_many(client, [name], lambda _: build())[0]


def load_many(client: Client, names: Sequence[str], build: Callable[[int], Buffer | Iterable[Buffer]]) -> list[Buffer]:
    """Many as one: the kept ones are read together, the others built, one after the other, by their position."""
    found: list[Buffer | None] = find_many(client, names)
    return [
        content if content is not None else keep(client, names[position], build(position))
        for position, content in enumerate(found)
    ]


def find_many(client: Client, names: Sequence[str]) -> list[Buffer | None]:
    """The contents kept under these names; None for each that is not there, or not whole, or damaged."""
    found: list[Buffer | None] = []
    for start in range(0, len(names), _TOGETHER):
        found += _find(client, names[start : start + _TOGETHER])
    return found


def keep(client: Client, name: str, content: Buffer | Iterable[Buffer]) -> Buffer:
    """Put content under the name, in the place of another; the content."""
    made = Content(content)
    try:
        (body,) = claims(client, [_body(name, len(made.data), made.etag)])
        head = _HEAD.pack(_MAGIC, len(made.data), bytes.fromhex(made.etag))
        (info,) = claims(client, [_head(name)])
        put(client, body, made.data)
        if not put(client, info, head) and client.read(info) != head:
            forget(client, [info])
            put(client, info, head)
    except _NOT_KEPT as error:
        remember(name, made.data, error)
    return made.data


# The parts that others build upon: objects of which the caller knows name, size and version


def claims(client: Client, wanted: Sequence[resolve.Wanted]) -> list[ObjectInfo]:
    """The objects that these names, sizes and versions stand for. NodeGone where no node says."""
    infos: list[ObjectInfo] = []
    for start in range(0, len(wanted), limits.BATCH_ITEMS_MAX):
        deadline = time.monotonic() + limits.DEADLINE_S_DEFAULT
        part = list(wanted[start : start + limits.BATCH_ITEMS_MAX])
        reply = client.session.call(resolve.KIND, resolve.Request(part, _milliseconds(deadline)), deadline)
        for answer in reply.objects:
            if isinstance(answer, resolve.Failed):
                raise BadRequest(answer.text)
            infos.append(objects.from_wire(answer))
    return infos


def named(client: Client, wanted: Sequence[resolve.Wanted]) -> list[ObjectInfo]:
    """`claims`, and where no node says what their fingerprints are, objects that no node will have."""
    try:
        return claims(client, wanted)
    except (NodeGone, ProtocolError, DeadlineExceeded):
        return [_unclaimed(each) for each in wanted]


def put_or_remember(client: Client, info: ObjectInfo, data: Buffer) -> None:
    """Store the object, or keep it in this process under its URL."""
    try:
        put(client, info, data)
    except _NOT_KEPT as error:
        remember(info.url, data, error)


def put(client: Client, info: ObjectInfo, data: Buffer) -> bool:
    """Store all blocks of the object; whether any was not there before. NodeGone, NoSpace, UnknownObject."""
    if info.block_size_bytes > limits.FRAME_BODY_BYTES_MAX - _FRAME_MARGIN_BYTES:
        raise NoSpace(f"{info.url}: blocks of {info.block_size_bytes} bytes are too large to be stored")
    view, new = memoryview(data), False
    for block in range(keys.block_count(info.size, info.block_size_bytes)):
        start = block * info.block_size_bytes
        part = bytes(view[start : start + info.block_size_bytes])
        deadline = time.monotonic() + limits.DEADLINE_S_DEFAULT
        request = store.Request(info.fingerprint, block, part, _milliseconds(deadline))
        try:
            reply = client.session.call(store.KIND, request, deadline)
        except (NodeGone, UnknownObject):
            # An old connection ended, or the node forgot what the fingerprint stands for: once more.
            claims(client, [resolve.Wanted(info.url, info.size, info.etag)])
            reply = client.session.call(store.KIND, request, deadline)
        new = new or reply.stored
    return new


def forget(client: Client, infos: Sequence[ObjectInfo]) -> None:
    """Drop these objects from the cache."""
    deadline = time.monotonic() + limits.DEADLINE_S_DEFAULT
    client.session.call(evict.KIND, evict.Request([info.fingerprint for info in infos]), deadline)
    grants = client.session.grants
    with grants.lock:
        for info in infos:
            for block in range(keys.block_count(info.size, info.block_size_bytes)):
                grants.forget_key((info.fingerprint, block))


def remember(name: str, data: Buffer, reason: Exception) -> None:
    """Keep in this process what the cache does not keep."""
    if not _said:
        _said.append(name)
        log.warning("the cache does not keep what is made of its objects, so it will be made again: %s", reason)
    with _lock:
        _remembered[name] = data
        size = sum(len(kept) for kept in _remembered.values())
        while size > _REMEMBERED_BYTES and len(_remembered) > 1:
            size -= len(_remembered.popitem(last=False)[1])


def remembered(name: str) -> Buffer | None:
    """What `remember` was given under this name, if it is still there."""
    return _remembered.get(name)


# Inside


def _find(client: Client, names: Sequence[str]) -> list[Buffer | None]:
    contents: list[Buffer | None] = [_remembered.get(name) for name in names]
    missing = [position for position, content in enumerate(contents) if content is None]
    try:
        heads = claims(client, [_head(names[position]) for position in missing])
        wanted: list[tuple[int, resolve.Wanted]] = []
        for position, head in zip(missing, _read(client, heads), strict=True):
            if head is not None and (body := _parsed(names[position], head)) is not None:
                wanted.append((position, body))
        bodies = claims(client, [body for _, body in wanted])
        for group in _groups(bodies):
            for place, content in zip(group, _read(client, [bodies[place] for place in group]), strict=True):
                contents[wanted[place][0]] = _whole(client, bodies[place], content)
    except _NOT_KEPT:
        pass  # what was not found so far is made, and `keep` says why it will be again
    return contents


def _read(client: Client, infos: Sequence[ObjectInfo]) -> list[bytes | None]:
    """Contents; None for what the cache does not give. Other errors are raised."""
    contents: list[bytes | None] = []
    for content in client.read_many(infos, return_errors=True):
        if isinstance(content, ShoalError) and not isinstance(content, _NOT_KEPT):
            raise content
        contents.append(None if isinstance(content, ShoalError) else content)
    return contents


def _whole(client: Client, body: ObjectInfo, content: bytes | None) -> bytes | None:
    if content is None or hashlib.blake2b(content, digest_size=16).hexdigest() == body.etag:
        return content
    log.warning("%s: is not what was stored; making it again", body.url)
    with contextlib.suppress(*_NOT_KEPT):
        forget(client, [body])
    return None


def _parsed(name: str, head: bytes) -> resolve.Wanted | None:
    magic, size, digest = _HEAD.unpack(head)
    return _body(name, size, digest.hex()) if magic == _MAGIC and size <= limits.OBJECT_BYTES_MAX else None


def _head(name: str) -> resolve.Wanted:
    return resolve.Wanted(keys.DERIVED + name, _HEAD.size, "head")


def _body(name: str, size: int, etag: str) -> resolve.Wanted:
    return resolve.Wanted(keys.DERIVED + name, size, etag)


def _unclaimed(wanted: resolve.Wanted) -> ObjectInfo:
    size, etag, block_size = wanted.size or 0, wanted.etag or "", limits.BLOCK_BYTES_DEFAULT
    fingerprint = keys.object_fingerprint(_NO_SPACE, wanted.url, etag, size, block_size)
    return ObjectInfo(wanted.url, size, etag, fingerprint, block_size, wanted.url)


def _groups(infos: Sequence[ObjectInfo]) -> list[range]:
    """Neighbours that are read together."""
    groups: list[range] = []
    start = size = 0
    for position, info in enumerate(infos):
        if size and size + info.size > _AT_ONCE_BYTES:
            groups.append(range(start, position))
            start, size = position, 0
        size += info.size
    if start < len(infos):
        groups.append(range(start, len(infos)))
    return groups


def _milliseconds(deadline: float) -> int:
    return max(1, int((deadline - time.monotonic()) * 1000))


def _forked() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_forked)

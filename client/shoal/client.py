"""The client: what `shoal.connect()` gives. Blocking and thread-safe; every method has an `a` twin for event loops.

A read takes one of two ways. If every block it touches lies under a held grant, it is a dict lookup and a copy (or a
view) under one lock, in this very function. If not, `reading.Reading` asks the node, in batches. An async twin answers
from held grants at once and otherwise runs the blocking call in a thread, which costs less than an event loop of its
own would: most reads wait for nothing.

Memory that `read` returns belongs to the caller. `view` lends the node's memory, read-only.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from shoal import administration, direct, file, many, pieces, twins
from shoal.administration import Residency
from shoal.attachment import abandon_holders
from shoal.grants import Grants
from shoal.members import Members
from shoal.objects import KnownObjects, ObjectInfo
from shoal.origin_fallback import OriginReader
from shoal.pieces import Piece
from shoal.reading import Reading
from shoal.resolution import Resolution
from shoal.routed import Routed
from shoal.session import Session
from shoal.stats import ReadStats
from shoal.token_source import TokenSource
from shoal.view import View
from shoal_core import limits
from shoal_core.errors import BadRequest, ShoalError
from shoal_core.verbs import hello
from shoal_transport import buffers
from shoal_transport.memory import MemoryListener

T = TypeVar("T")

Where = str | ObjectInfo
"""A URL, in the version it has now (asked at most once a minute), or exactly the version that an ObjectInfo names."""

Page = list[ObjectInfo]
"""Part of a listing. (Inside the class, `list` is the method.)"""

Range = Where | tuple[Where, int, int | None]
"""What to read: an object, or (object, offset, length); length None means to the end."""

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """Reads through one node. Made by `shoal.connect`."""

    def __init__(
        self,
        address: str | MemoryListener,
        *,
        deadline_s: float = limits.DEADLINE_S_DEFAULT,
        datasets: Mapping[str, str] | None = None,
        zone: str = "",
        rack: str = "",
        token_file: str | None = None,
    ) -> None:
        self.address = address
        self.give_token = TokenSource(token_file)
        self._place = zone, rack
        self._deadline_s = deadline_s
        self._datasets = dict(datasets or {})
        self._grants = Grants()
        self._objects = KnownObjects()
        self._stats = ReadStats()
        self._origin = OriginReader(self._datasets)
        # The first is for the rest of the package.
        self.session = self._session = Session(address, self._grants, self.give_token)
        self.give_token.home = self._session
        self._routed = Routed(self._stats, zone, rack, self.give_token)
        self._session.attached = self._routed.attached
        self._session.refresh = self._routed.refresh
        self._reading = Reading(self._session, self._origin, self._stats, self._routed)
        self._resolution = Resolution(
            self._session, self._routed, self._origin, self._objects, self._reading.say_once
        )  # fmt: skip
        self._pid = os.getpid()
        _clients.add(self)
        buffers.reuse_freed_memory()

    # Reads

    def read(self, url: Where, offset: int = 0, length: int | None = None, *, deadline_s: float | None = None) -> bytes:
        """`length` bytes from `offset`, or to the end; like a file, fewer where the object ends.

        Raises NotFound, Forbidden, OriginError, ObjectChanged, DeadlineExceeded, BadRequest.
        """
        info = url if isinstance(url, ObjectInfo) else self._objects.get(url)
        if info is not None and (data := self._read_held(info, offset, length)) is not None:
            return data
        deadline = self._deadline(deadline_s)
        info = self._resolve(url, deadline)
        count = pieces.checked(info, offset, length)
        if not count:
            return b""
        data, target = buffers.new_bytes(count)
        self._run(pieces.split(info, offset, count, target, 0), deadline)
        target.release()
        self._stats.reads += 1
        self._stats.bytes += count
        return data

    def read_into(self, url: Where, buffer: Any, offset: int = 0, *, deadline_s: float | None = None) -> int:
        """Fill a writable buffer from `offset`; the number of bytes, fewer where the object ends."""
        target = memoryview(buffer).cast("B")
        deadline = self._deadline(deadline_s)
        info = self._resolve(url, deadline)
        count = pieces.checked(info, offset, len(target))
        if count:
            self._run(pieces.split(info, offset, count, target[:count], 0), deadline)
        self._stats.reads += 1
        self._stats.bytes += count
        return count

    def read_many(
        self, requests: Sequence[Range], *, deadline_s: float | None = None, return_errors: bool = False
    ) -> list[Any]:
        """Many reads as one: a list of bytes in the order asked. One request per batch to the node.

        The first error is raised, unless `return_errors` puts each in the place of its bytes.
        """
        results: list[Any] = [None] * len(requests)
        missing = many.held(self, requests, results)
        if missing:
            errors = many.missing(self, requests, missing, results, self._deadline(deadline_s))
            for position, error in sorted(errors.items()):
                if not return_errors:
                    raise error
                results[position] = error
        self._stats.reads += len(requests)
        self._stats.bytes += sum(len(result) for result in results if isinstance(result, bytes))
        return results

    def view(self, url: Where, offset: int = 0, length: int | None = None, *, deadline_s: float | None = None) -> View:
        """The range where it lies, without a copy, while the `with` block or anything made from it lives."""
        info = url if isinstance(url, ObjectInfo) else self._objects.get(url)
        if info is not None:
            block, inside = divmod(offset, info.block_size_bytes)
            count = info.size - offset if length is None else min(length, info.size - offset)
            if 0 < count <= info.block_size_bytes - inside and offset >= 0:
                with self._grants.lock:
                    grant = self._grants.by_key.get((info.fingerprint, block))
                    if grant is not None:
                        self._grants.touch(grant)
                        part = grant.view()
                        if count != len(part):
                            part = part[inside : inside + count]
                        self._count_held(count)
                        return View(info.url, [part], True)
        deadline = self._deadline(deadline_s)
        info = self._resolve(url, deadline)
        count = pieces.checked(info, offset, length)
        wanted = pieces.split(info, offset, count, None, 0)
        self._run(wanted, deadline)
        self._stats.reads += 1
        self._stats.bytes += count
        parts = [piece.part for piece in wanted if piece.part is not None]
        return View(info.url, parts, all(not piece.copied for piece in wanted))

    def open(self, url: str, mode: str = "rb", *, buffer_bytes: int = file.BUFFER_BYTES) -> Any:
        """A seekable, buffered, read-only file object."""
        return file.open_binary(self, url, mode, buffer_bytes=buffer_bytes)

    def prefetch(self, url: Where, offset: int = 0, length: int | None = None) -> None:
        """Ask the node to fill the range; does not wait for it."""
        deadline = self._deadline(None)
        info = self._resolve(url, deadline)
        count = pieces.checked(info, offset, length)
        if count:
            first = offset // info.block_size_bytes
            last = (offset + count - 1) // info.block_size_bytes
            administration.prefetch(self._session, info, first, last - first + 1, deadline)

    # Objects

    def info(self, url: str, *, deadline_s: float | None = None) -> ObjectInfo:
        """Size and version. NotFound when there is no such object."""
        return self._resolve(url, self._deadline(deadline_s))

    def infos(self, urls: Sequence[str], *, deadline_s: float | None = None) -> list[ObjectInfo | ShoalError]:
        """Of many, in order; an error in the place of each that has none."""
        return self._resolution.many(urls, self._deadline(deadline_s))

    def list(self, url: str, *, deadline_s: float | None = None) -> list[ObjectInfo]:
        """All objects below a URL. Reads of them need no request to the origin for their size and version."""
        found = [info for page in self.list_pages(url, deadline_s=deadline_s) for info in page]
        self._objects.add(found)
        return found

    def list_pages(self, url: str, *, deadline_s: float | None = None) -> Iterator[Page]:
        """The same page by page, remembering nothing; the deadline is for each page."""
        return administration.list_pages(self._session, url, deadline_s or self._deadline_s)

    def inspect(self, urls: Sequence[Where]) -> list[Residency]:
        """What is cached of each object, by tier. In a cluster, on whichever nodes."""
        deadline = self._deadline(None)
        infos = self._resolution.many(urls, deadline)
        return administration.inspect(self._session, self._routed, self._reading, infos, deadline)

    def evict(self, url: str) -> int:
        """Drop an object, or all below a URL that ends with '/', from every node; copies of blocks dropped.

        NodeGone when a node could not be asked, which goes on with what it has; the others have dropped it then.
        """
        deadline = self._deadline(None)
        infos = self.list(url) if url.endswith("/") else [self._resolve(url, deadline)]
        count, silent = administration.evict(self._session, self._routed, self._reading, infos, deadline)
        with self._grants.lock:
            for info in infos:
                self._objects.forget(info.url)
                for block in range(-(-info.size // info.block_size_bytes)):
                    self._grants.forget_key((info.fingerprint, block))
        administration.expect_all(f"{url}: {count} blocks dropped", silent)
        return count

    def declare_dataset(
        self,
        name: str,
        url: str,
        *,
        eviction: str = "s3fifo",
        quota_bytes: int | None = None,
        ttl_s: float | None = None,
        replicas: int | None = None,
    ) -> None:
        """Give a URL prefix a name, a quota and an eviction policy of its own; then shoal://name/path reads it.

        `replicas`: how many nodes are to hold each block. NodeGone when a node could not be told: declare it again
        when it is back, or it will not know the name.
        """
        silent = administration.declare_dataset(
            self._session, self._routed, name, url, eviction, quota_bytes, ttl_s, replicas, self._deadline(None)
        )
        self._datasets[name] = self._origin.datasets[name] = url
        administration.expect_all(f"dataset {name} declared", silent)

    # Numbers and endings

    def stats(self) -> ReadStats:
        """This client's counters."""
        return self._stats

    def node_stats(self) -> dict[str, Any]:
        """The node's counters, gauges and configuration."""
        return administration.node_stats(self._session, self._deadline(None))

    def members(self, *, deadline_s: float | None = None) -> Members:
        """The nodes of the cluster that answer now, to be asked one by one; NodeGone where nobody is known."""
        return Members(self._session, self._routed, self._deadline(deadline_s))

    def terms(self) -> hello.Reply | None:
        """What the node said of itself when it was first reached; None while it is not."""
        try:
            return self._session.attach(self._deadline(None)).terms
        except ShoalError:
            return None

    def close(self) -> None:
        """Give back every lease that no view holds. Closing twice is fine."""
        self._session.close()
        self._routed.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process connects by itself: leases and sockets belong to this one.
        if isinstance(self.address, MemoryListener):
            raise BadRequest("a client over the memory door cannot be sent to another process")
        return _rebuild, (self.address, self._deadline_s, self._datasets, self._place, self.give_token.path)

    async def aread(
        self, url: Where, offset: int = 0, length: int | None = None, *, deadline_s: float | None = None
    ) -> bytes:
        """`read` for event loops: answered at once from held grants, else in a thread."""
        info = url if isinstance(url, ObjectInfo) else self._objects.get(url)
        if info is not None and (data := self._read_held(info, offset, length)) is not None:
            return data
        return await asyncio.to_thread(self.read, url, offset, length, deadline_s=deadline_s)

    aread_into = twins.twin(read_into)
    aread_many = twins.twin(read_many)
    aview = twins.twin(view)
    ainfo = twins.twin(info)
    alist = twins.twin(list)  # noqa: A003 the method, not the builtin
    aopen = twins.twin(open)  # noqa: A003

    # Held grants: the hot path

    def _read_held(self, info: ObjectInfo, offset: int, length: int | None) -> bytes | None:
        """The range, if it lies in one block under a held grant."""
        count = info.size - offset
        if length is not None and length < count:
            count = length
        block, inside = divmod(offset, info.block_size_bytes)
        if count <= 0 or offset < 0 or inside + count > info.block_size_bytes:
            return None
        with self._grants.lock:
            grant = self._grants.by_key.get((info.fingerprint, block))
            if grant is None:
                return None
            self._grants.touch(grant)
            data = bytes(grant.memory[inside : inside + count])
        self._count_held(count)
        return data

    def _count_held(self, count: int) -> None:
        self._stats.reads += 1
        self._stats.bytes += count
        self._stats.hits["shared memory"] += 1

    # Inside

    def _run(self, wanted: list[Piece], deadline: float) -> None:
        for error in self._reading.read(wanted, deadline).values():
            self._resolution.doubt(wanted[0].info, error)
            raise error

    def _resolve(self, url: Where, deadline: float) -> ObjectInfo:
        info = url if isinstance(url, ObjectInfo) else self._objects.get(url)
        if info is not None:
            return info
        found = self._resolution.many([url], deadline)[0]
        if isinstance(found, ShoalError):
            raise found
        return found

    def _deadline(self, deadline_s: float | None) -> float:
        if deadline_s is not None and deadline_s <= 0:
            raise BadRequest(f"deadline_s: {deadline_s} is not above 0")
        return time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)

    def reset_after_fork(self) -> None:
        """In a forked child: drop what belongs to the parent. Called by itself."""
        self._objects.reset_after_fork()
        self.give_token.reset_after_fork()
        self._session.abandon()
        self._routed.abandon()
        self._pid = os.getpid()


def _rebuild(
    address: str, deadline_s: float, datasets: dict[str, str], place: tuple[str, str], token_file: str | None
) -> Client:
    zone, rack = place
    return Client(address, deadline_s=deadline_s, datasets=datasets, zone=zone, rack=rack, token_file=token_file)


def _forked() -> None:
    abandon_holders()
    direct.reset_after_fork()
    for client in list(_clients):
        client.reset_after_fork()


os.register_at_fork(after_in_child=_forked)

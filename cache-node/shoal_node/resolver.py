"""From URLs to objects: datasets' names, one HEAD at a time per URL, listings page by page.

A URL that was resolved is trusted for limits.RESOLVE_FRESH_S, or as its data set says; then the origin is asked again,
and if its version changed, the next reads have another fingerprint: there is no invalidation. When the origin cannot be
reached, what it said last time still serves, marked stale and counted, so that what is cached outlives an outage of its
origin.

Who may read some data sets only has a scope, which says what its URLs mean; what they lead to must lie in it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from shoal_core import keys, limits
from shoal_core.errors import BadRequest, DeadlineExceeded, NotFound, OriginError, ShoalError, UnknownObject, to_wire
from shoal_core.verbs import listing, resolve
from shoal_node.objects import ObjectRecord
from shoal_node.scope import OutOfScope, Scope
from shoal_node.spaces import DERIVED_SPACE, refusal_of
from shoal_transport.origins.interface import ObjectMeta, shown
from shoal_transport.origins.object_stores import can_read

if TYPE_CHECKING:
    from shoal_node.runtime import Node

_HEADS_AT_ONCE = 64
_LISTINGS_OPEN_MAX = 256
SCHEME = "shoal://"


_Listing = tuple[AsyncIterator[list[ObjectMeta]], int, tuple[str, str] | None]
"""Pages to come, their space, and how their URLs are renamed for the user."""


class Resolver:
    """Runs on the node's loop, but for `locate` and `claimed`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._heads: dict[tuple[int, str], asyncio.Task[ObjectRecord]] = {}
        self._at_once = asyncio.Semaphore(_HEADS_AT_ONCE)
        self._listings: dict[int, _Listing] = {}
        self._cursors = itertools.count(1)

    def locate(self, url: str, scope: Scope | None = None) -> tuple[int, str]:
        """(space, URL at the origin) of a user's URL; BadRequest, Forbidden or NotFound names what is wrong."""
        if len(url.encode("utf-8", "surrogatepass")) > limits.URL_BYTES_MAX:
            raise BadRequest(f"{url[:80]}...: a URL of more than {limits.URL_BYTES_MAX} bytes")
        spaces = self._node.state.spaces
        url = url if scope is None else scope.translated(url)
        if url.startswith(keys.DERIVED):
            return next(number for number, space in enumerate(spaces) if space.name == DERIVED_SPACE), url
        if url.startswith(SCHEME):
            name, _, path = url[len(SCHEME) :].partition("/")
            for number, space in enumerate(spaces):
                if space.url is not None and space.name == name:
                    origin = f"{space.url.rstrip('/')}/{path}" if path else space.url
                    if scope is not None and "::" in path and not can_read(origin):
                        raise OutOfScope(f"{url}: '::' would name another place than the data set's")
                    return number, origin
            if scope is not None:
                raise NotFound(f"{url}: this node does not know the data set {name!r}, or not yet")
            known = ", ".join(space.name for space in spaces if space.url) or "none"
            raise NotFound(f"{url}: no dataset named {name!r} on this node; it knows: {known}")
        return 0, url

    def _place(self, wanted: resolve.Wanted, scope: Scope | None) -> tuple[int, str]:
        """As `locate`; another node says the space's name and the URL at the origin."""
        name, url = wanted.space, wanted.url
        if name is None:
            return self._belonging(*self.locate(url, scope))
        if scope is not None:
            raise scope.refusal(f"{shown(url)}: its space was named")
        for number, space in enumerate(self._node.state.spaces):
            if space.name == name and not space.is_removed:
                return self._belonging(number, url)
        raise NotFound(f"{url}: no space named {name!r} on this node")

    def _belonging(self, number: int, url: str) -> tuple[int, str]:
        """The same, if a data set's patterns leave it in, and it lies below the data set's URL at all."""
        space = self._node.state.spaces[number]
        if space.url is not None and url != space.url:
            refusal = refusal_of(space, url)
            if refusal:
                raise NotFound(f"{shown(url)}: {refusal}")
        return number, url

    def claimed(
        self, fingerprints: list[bytes], claims: list[resolve.Wanted | None], scope: Scope | None = None
    ) -> list[ObjectRecord]:
        """Objects by what a reader says that they are, checked by their fingerprints. UnknownObject for any other."""
        found: list[ObjectRecord] = []
        for fingerprint, claim in zip(fingerprints, claims, strict=True):
            with self._node.step() as state:
                record = state.objects.get(fingerprint)
            if record is None and claim is not None and claim.size is not None and claim.etag is not None:
                given = self._place(claim, scope)
                if 0 <= claim.size <= limits.OBJECT_BYTES_MAX:
                    record = self._remember(given[0], ObjectMeta(given[1], claim.size, claim.etag), fresh=False)
            if record is None or record.fingerprint != fingerprint:
                raise UnknownObject("a fingerprint is not remembered here, and what is said of it is not it")
            found.append(record)
        return found

    async def resolve(self, request: resolve.Request, scope: Scope | None = None) -> resolve.Reply:
        """Each wanted URL by itself: an object or an error."""
        if len(request.wanted) > limits.BATCH_ITEMS_MAX:
            raise BadRequest(f"{len(request.wanted)} URLs in one resolve; at most {limits.BATCH_ITEMS_MAX}")
        deadline = time.monotonic() + request.deadline_ms / 1000
        found = await asyncio.gather(*(self._resolve_one(wanted, deadline, scope) for wanted in request.wanted))
        return resolve.Reply(found)

    async def _resolve_one(
        self, wanted: resolve.Wanted, deadline: float, scope: Scope | None
    ) -> resolve.Object | resolve.Failed:
        try:
            space, url = self._place(wanted, scope)
            if wanted.size is not None and wanted.etag is not None:
                if not 0 <= wanted.size <= limits.OBJECT_BYTES_MAX:
                    raise BadRequest(f"{shown(url)}: an object of {wanted.size} bytes")
                record = self._remember(space, ObjectMeta(url, wanted.size, wanted.etag), fresh=False)
                return self._object(wanted.url, record, stale=False)
            with self._node.step() as state:
                known = state.objects.resolved(space, url)
            fresh_s = self._node.state.spaces[space].refresh_s or limits.RESOLVE_FRESH_S
            if known is not None and time.monotonic() - known[1] < fresh_s:
                return self._object(wanted.url, known[0], stale=False)
            try:
                record = await self._head(space, url, deadline)
            except (OriginError, DeadlineExceeded):
                if known is None:
                    raise
                self._node.counters.fallbacks["stale_resolve"] += 1
                return self._object(wanted.url, known[0], stale=True)
            return self._object(wanted.url, record, stale=False)
        except ShoalError as error:
            if isinstance(error, OutOfScope):
                with self._node.step():
                    self._node.counters.refusals["scope"] += 1
            return resolve.Failed(*to_wire(error))

    async def _head(self, space: int, url: str, deadline: float) -> ObjectRecord:
        """One HEAD per URL, however many wait for it; who stops waiting strands nobody."""
        task = self._heads.get((space, url))
        if task is None:
            task = self._heads[space, url] = self._node.loop.create_task(self._ask(space, url))
            task.add_done_callback(lambda _: self._heads.pop((space, url), None))
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.shield(task)
        except TimeoutError:
            raise DeadlineExceeded(f"{shown(url)}: the origin did not answer within the deadline") from None

    async def _ask(self, space: int, url: str) -> ObjectRecord:
        async with self._at_once:
            self._node.counters.origin_requests += 1
            name = self._node.state.spaces[space].name
            meta = await self._node.origins.head(url, timeout_s=self._node.config.fill.timeout_s, dataset=name)
        # Here, not by those who wait: whoever comes when this task has ended must find what it found.
        return self._remember(space, meta, fresh=True)

    async def list(self, request: listing.Request, scope: Scope | None = None) -> listing.Reply:
        """One page. A listing that nobody continues is forgotten when too many are open."""
        timeout_s = request.deadline_ms / 1000
        if request.cursor == 0:
            space, url = self.locate(request.url, scope)
            pages = self._node.origins.list(url, timeout_s=timeout_s, dataset=self._node.state.spaces[space].name)
            prefix = request.url if request.url.startswith(SCHEME) else url
            state = pages, space, _relative(url, prefix)
            if len(self._listings) >= _LISTINGS_OPEN_MAX:
                self._listings.pop(next(iter(self._listings)))
        else:
            found = self._listings.get(request.cursor)
            if found is None:
                raise BadRequest(f"{request.url}: this listing is not open any more; start again")
            if scope is not None:
                scope.check(self._node.state.spaces[found[1]].name, request.url)
            state = self._listings.pop(request.cursor)
        pages, space, rename = state
        self._node.counters.origin_requests += 1
        try:
            page = await anext(pages)
        except StopAsyncIteration:
            return listing.Reply([], 0)
        cursor = next(self._cursors)
        self._listings[cursor] = state
        objects: list[resolve.Object] = []
        of = self._node.state.spaces[space]
        for meta in page:
            if refusal_of(of, meta.url):
                continue
            record = self._remember(space, meta, fresh=True)
            objects.append(self._object(_renamed(meta.url, rename), record, stale=False))
        return listing.Reply(objects, cursor)

    def _object(self, url: str, record: ObjectRecord, stale: bool) -> resolve.Object:
        replicas = self._node.state.spaces[record.space].replicas
        return resolve.Object(
            url, record.size, record.etag, record.fingerprint, record.block_size_bytes, record.url, stale, replicas
        )

    def _remember(self, space: int, meta: ObjectMeta, fresh: bool) -> ObjectRecord:
        block_size = self._node.config.fill.block_size_bytes
        uid = self._node.state.spaces[space].uid
        fingerprint = keys.object_fingerprint(uid, meta.url, meta.etag, meta.size, block_size)
        with self._node.step() as state:
            record = state.objects.get(fingerprint)
            if record is None:
                record = ObjectRecord(fingerprint, meta.url, meta.size, meta.etag, space, block_size)
            state.objects.remember(record, time.monotonic() if fresh else None)
        return record


def _relative(origin: str, asked: str) -> tuple[str, str] | None:
    """How a listed origin URL becomes the user's: (origin prefix, user's prefix), or None when they are the same."""
    return None if origin == asked else (origin.rstrip("/"), asked.rstrip("/"))


def _renamed(url: str, rename: tuple[str, str] | None) -> str:
    return url if rename is None else rename[1] + url.removeprefix(rename[0])

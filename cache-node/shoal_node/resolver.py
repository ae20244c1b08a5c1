"""From URLs to objects: datasets' names, one HEAD at a time per URL, listings page by page.

A URL that was resolved is trusted for limits.RESOLVE_FRESH_S; then the origin is asked again, and if its version
changed, the next reads have another fingerprint: there is no invalidation. When the origin cannot be reached, what it
said last time still serves, marked stale and counted, so that what is cached outlives an outage of its origin.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from shoal_core import config, keys, limits, structure
from shoal_core.errors import BadRequest, DeadlineExceeded, NotFound, OriginError, ShoalError, to_wire
from shoal_core.verbs import dataset, listing, resolve
from shoal_node import declared_datasets
from shoal_node.objects import ObjectRecord
from shoal_node.spaces import space_of
from shoal_transport.origins.interface import ObjectMeta, shown

if TYPE_CHECKING:
    from shoal_node.runtime import Node

DEFAULT_SPACE = "default"

DERIVED_SPACE = "(derived)"
"""Of derived objects, so that a loader's plan for files of the default space does not push out their indexes."""
_HEADS_AT_ONCE = 64
_LISTINGS_OPEN_MAX = 256
SCHEME = "shoal://"


_Listing = tuple[AsyncIterator[list[ObjectMeta]], int, tuple[str, str] | None]
"""Pages to come, their space, and how their URLs are renamed for the user."""


class Resolver:
    """Runs on the node's loop, but for `locate` and `declare`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._heads: dict[tuple[int, str], asyncio.Task[ObjectRecord]] = {}
        self._at_once = asyncio.Semaphore(_HEADS_AT_ONCE)
        self._listings: dict[int, _Listing] = {}
        self._cursors = itertools.count(1)

    def locate(self, url: str) -> tuple[int, str]:
        """(space, URL at the origin) of a user's URL; BadRequest or NotFound names what is wrong."""
        if len(url.encode("utf-8", "surrogatepass")) > limits.URL_BYTES_MAX:
            raise BadRequest(f"{url[:80]}...: a URL of more than {limits.URL_BYTES_MAX} bytes")
        spaces = self._node.state.spaces
        if url.startswith(keys.DERIVED):
            return next(number for number, space in enumerate(spaces) if space.name == DERIVED_SPACE), url
        if url.startswith(SCHEME):
            name, _, path = url[len(SCHEME) :].partition("/")
            for number, space in enumerate(spaces):
                if space.url is not None and space.name == name:
                    return number, f"{space.url.rstrip('/')}/{path}" if path else space.url
            known = ", ".join(space.name for space in spaces if space.url) or "none"
            raise NotFound(f"{url}: no dataset named {name!r} on this node; it knows: {known}")
        return 0, url

    def declare(self, request: dataset.Request) -> bool:
        """Make or change a dataset; whether it is new. ConfigError names what cannot be."""
        node = self._node
        if request.ttl_s is not None and not 0 < request.ttl_s < limits.TTL_S_MAX:
            raise BadRequest(f"dataset {request.name}.ttl_s: {request.ttl_s} is not between 0 and {limits.TTL_S_MAX}")
        ttl_s = None if request.ttl_s is None else max(1, int(request.ttl_s))
        settings = {
            "url": request.url,
            "eviction": request.eviction,
            "quota_bytes": request.quota_bytes,
            "ttl_s": ttl_s,
        }
        checked = structure.build(config.Dataset, settings, f"dataset {request.name}")
        config.check_dataset(f"dataset {request.name}", request.name, checked, node.config)
        with node.step() as state:
            new = all(space.name != request.name for space in state.spaces)
            state.add_space(space_of(node.tenant, request.name, **msgspec.structs.asdict(checked)), node.now_s())
            declared = {space.name: space for space in state.spaces if space.url is not None}
        declared_datasets.save(node.config.state_directory, declared.values())
        return new

    async def resolve(self, request: resolve.Request) -> resolve.Reply:
        """Each wanted URL by itself: an object or an error."""
        if len(request.wanted) > limits.BATCH_ITEMS_MAX:
            raise BadRequest(f"{len(request.wanted)} URLs in one resolve; at most {limits.BATCH_ITEMS_MAX}")
        deadline = time.monotonic() + request.deadline_ms / 1000
        found = await asyncio.gather(*(self._resolve_one(wanted, deadline) for wanted in request.wanted))
        return resolve.Reply(found)

    async def _resolve_one(self, wanted: resolve.Wanted, deadline: float) -> resolve.Object | resolve.Failed:
        try:
            space, url = self.locate(wanted.url)
            if wanted.size is not None and wanted.etag is not None:
                if not 0 <= wanted.size <= limits.OBJECT_BYTES_MAX:
                    raise BadRequest(f"{shown(url)}: an object of {wanted.size} bytes")
                record = self._remember(space, ObjectMeta(url, wanted.size, wanted.etag), fresh=False)
                return _object(wanted.url, record, stale=False)
            with self._node.step() as state:
                known = state.objects.resolved(space, url)
            if known is not None and time.monotonic() - known[1] < limits.RESOLVE_FRESH_S:
                return _object(wanted.url, known[0], stale=False)
            try:
                record = await self._head(space, url, deadline)
            except (OriginError, DeadlineExceeded):
                if known is None:
                    raise
                self._node.counters.fallbacks["stale_resolve"] += 1
                return _object(wanted.url, known[0], stale=True)
            return _object(wanted.url, record, stale=False)
        except ShoalError as error:
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
            meta = await self._node.origins.head(url, timeout_s=self._node.config.fill.timeout_s)
        # Here, not by those who wait: whoever comes when this task has ended must find what it found.
        return self._remember(space, meta, fresh=True)

    async def list(self, request: listing.Request) -> listing.Reply:
        """One page. A listing that nobody continues is forgotten when too many are open."""
        timeout_s = request.deadline_ms / 1000
        if request.cursor == 0:
            space, url = self.locate(request.url)
            pages = self._node.origins.list(url, timeout_s=timeout_s)
            prefix = request.url if request.url.startswith(SCHEME) else url
            state = pages, space, _relative(url, prefix)
            if len(self._listings) >= _LISTINGS_OPEN_MAX:
                self._listings.pop(next(iter(self._listings)))
        else:
            found = self._listings.pop(request.cursor, None)
            if found is None:
                raise BadRequest(f"{request.url}: this listing is not open any more; start again")
            state = found
        pages, space, rename = state
        self._node.counters.origin_requests += 1
        try:
            page = await anext(pages)
        except StopAsyncIteration:
            return listing.Reply([], 0)
        cursor = next(self._cursors)
        self._listings[cursor] = state
        objects: list[resolve.Object] = []
        for meta in page:
            record = self._remember(space, meta, fresh=True)
            objects.append(_object(_renamed(meta.url, rename), record, stale=False))
        return listing.Reply(objects, cursor)

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


def _object(url: str, record: ObjectRecord, stale: bool) -> resolve.Object:
    return resolve.Object(url, record.size, record.etag, record.fingerprint, record.block_size_bytes, record.url, stale)


def _relative(origin: str, asked: str) -> tuple[str, str] | None:
    """How a listed origin URL becomes the user's: (origin prefix, user's prefix), or None when they are the same."""
    return None if origin == asked else (origin.rstrip("/"), asked.rstrip("/"))


def _renamed(url: str, rename: tuple[str, str] | None) -> str:
    return url if rename is None else rename[1] + url.removeprefix(rename[0])

"""Listing the origins of a pool's data sets: how many objects, how many bytes, which version; or what is wrong there.

Of all nodes only the first owner of the data set's uid in the view lists it, when it is declared or changed, when its
credentials are others, and every `refresh_s`. An origin is listed at most once in `AGAIN_S_MIN`, and a listing that
takes long is made less often, so that it costs the node's loop a twentieth at most. Errors are tried again sooner:
what is wrong is wrong for readers as well. Runs on the node's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from shoal_core.errors import BadRequest, ConfigError, DeadlineExceeded, Forbidden, NotFound, OriginError, ShoalError
from shoal_node.manifest import Manifest
from shoal_node.spaces import Space, refusal_of

if TYPE_CHECKING:
    from shoal_node.runtime import Node

AGAIN_S_MIN = 60.0
FAILED_AGAIN_S = 15.0
_SHARE = 20
"""A listing that took a second is made again after this many at the earliest."""
_AT_ONCE = 4
_LOOK_S = 0.5
_PAGE_S = 60.0
"""For one page of a listing, which the store's own retries are part of."""

UNLISTED = "unlisted"
"""The manifest of a data set whose origin gives no listing, as web servers do: its objects are read by name."""

_CODES: tuple[tuple[type[ShoalError], str], ...] = (
    (NotFound, "NotFound"),
    (Forbidden, "CredentialsRejected"),
    (DeadlineExceeded, "OriginUnreachable"),
    (OriginError, "OriginUnreachable"),
    (BadRequest, "BadSource"),
    (ConfigError, "BadSource"),
)


class Due(NamedTuple):
    """When a data set is to be listed."""

    refresh_s: float | None
    """None: once."""
    generation: int


class Found(NamedTuple):
    """What a listing found."""

    objects: int
    bytes: int
    manifest: str
    at_s: float


class _Kept:
    """Of one data set."""

    def __init__(self, due: Due) -> None:
        self.due = due
        self.next_s: float | None = 0.0
        """None: not before something changes."""
        self.found: Found | None = None
        self.error: tuple[str, str] | None = None
        self.task: asyncio.Task[None] | None = None


class Scans:
    """One for the node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._kept: dict[str, _Kept] = {}
        self._one_ended = asyncio.Event()

    def follow(self, datasets: Mapping[str, Due]) -> None:
        """These are all."""
        for name in self._kept.keys() - datasets.keys():
            self._stop(name)
        for name, due in datasets.items():
            known = self._kept.get(name)
            if known is None or known.due.generation != due.generation:
                if known is not None:
                    self._stop(name)
                self._kept[name] = _Kept(due)
            elif known.due != due:
                known.due, known.next_s = due, 0.0

    def want(self, name: str) -> None:
        """It may be another one now: list it soon."""
        if (kept := self._kept.get(name)) is not None:
            kept.next_s = 0.0

    def found(self, name: str) -> Found | None:
        """What the last listing found that ended well; None: there is none, or another node lists it."""
        kept = self._kept.get(name)
        return kept.found if kept is not None else None

    def error(self, name: str) -> tuple[str, str] | None:
        """(code, message) of the last listing, if it did not end well."""
        kept = self._kept.get(name)
        return kept.error if kept is not None else None

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._one_ended.clear()
                self._look()
                # Looked at: the view, credentials and data sets all bear on it.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._one_ended.wait()
        finally:
            for name in list(self._kept):
                self._stop(name)

    def _look(self) -> None:
        peers = self._node.peers
        if peers is None or peers.cluster.router.view is None:
            return
        running = sum(kept.task is not None for kept in self._kept.values())
        uids = {space.name: space for space in self._node.state.spaces if space.url is not None}
        now_s = time.monotonic()
        for name, kept in self._kept.items():
            space = uids.get(name)
            if space is None:
                continue
            with peers.lock:
                is_mine = peers.cluster.owners(space.uid, 1) == [self._node.config.node_name]
            if not is_mine:
                kept.found = kept.error = None
                kept.next_s = 0.0
            elif kept.task is None and kept.next_s is not None and kept.next_s <= now_s and running < _AT_ONCE:
                running += 1
                kept.next_s = None
                kept.task = asyncio.get_running_loop().create_task(self._scan(kept, space))
                kept.task.add_done_callback(functools.partial(self._ended, kept))

    async def _scan(self, kept: _Kept, space: Space) -> None:
        began_s = time.monotonic()
        try:
            kept.found, kept.error = await self._list(space), None
            if not kept.found.objects and kept.found.manifest != UNLISTED:
                kept.error = "NotFound", f"{space.url}: there is no object of the data set there"
        except ShoalError as error:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), "BadSource")
            kept.error = code, str(error)
        took_s = time.monotonic() - began_s
        if kept.next_s is None:  # else somebody wants it anew already
            again_s = FAILED_AGAIN_S if kept.error is not None else kept.due.refresh_s
            if again_s is not None:
                least_s = 0.0 if kept.error is not None else AGAIN_S_MIN
                kept.next_s = time.monotonic() + max(again_s, least_s, _SHARE * took_s)

    async def _list(self, space: Space) -> Found:
        assert space.url is not None
        manifest = Manifest()
        start = len(space.url.rstrip("/")) + 1
        if space.url.startswith(("http://", "https://")):
            return Found(0, 0, UNLISTED, time.time())
        self._node.counters.origin_requests += 1
        async for page in self._node.origins.list(space.url, timeout_s=_PAGE_S, dataset=space.name):
            for meta in page:
                if not refusal_of(space, meta.url):
                    manifest.add(meta.url[start:], meta.size, meta.etag)
            await asyncio.sleep(0)
        return Found(manifest.objects, manifest.bytes, manifest.digest, time.time())

    def _stop(self, name: str) -> None:
        task = self._kept.pop(name).task
        if task is not None:
            task.cancel()

    def _ended(self, kept: _Kept, task: asyncio.Task[None]) -> None:
        kept.task = None
        self._one_ended.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            kept.error = "BadSource", f"{type(error).__name__}: {error}"
            kept.next_s = time.monotonic() + AGAIN_S_MIN

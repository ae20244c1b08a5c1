"""A census: which objects of a kind there are, as the API server lists them, against those that are in the store.

Watches tell what happens, but not what happened while there was none: after a gap too long for the server to remember,
the framework lists anew, and objects that went in between are simply not in the list. The census finds them, and drops
them. It is taken at the start, where it also tells when the first lists have come in and decisions can be made; after
each new list; and every ten minutes. It asks for names only, a quarter of what the objects are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

import msgspec

from shoal_operator.api import Api, ApiError
from shoal_operator.kinds import KINDS, WATCHED_EVERYWHERE, WATCHED_IN_RELEASE
from shoal_operator.names import POOL_LABEL
from shoal_operator.observing import Name, Store

_LOG = logging.getLogger("shoal.operator.census")

EVERY_S = 600.0
SETTLE_S = 3.0
"""From the first sign of a new list to the census: the list is in the store by then."""
_LOOK_AGAIN_S = 0.3
_PAGE = "500"
_NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_TIMEOUT_S = 30.0


class _Metadata(msgspec.Struct):
    name: str
    uid: str
    namespace: str = ""


class _Item(msgspec.Struct):
    metadata: _Metadata


class _ListMetadata(msgspec.Struct):
    next: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    metadata: _ListMetadata
    items: list[_Item] | None = None


class Census:
    """Of all watched kinds. `synced` is set once the store holds all there was when the process began."""

    def __init__(self, api: Api, store: Store, namespace: str) -> None:
        self._api = api
        self._store = store
        self._namespace = namespace
        self._relisted: set[str] = set()
        self._wanted = asyncio.Event()
        self.synced = asyncio.Event()

    def soon(self, kind: str) -> None:
        """The kind was listed anew."""
        self._relisted.add(kind)
        self._wanted.set()

    async def run(self, on_synced: Callable[[], None]) -> None:
        """Until cancelled."""
        everything = (*WATCHED_EVERYWHERE, *WATCHED_IN_RELEASE)
        missing = set(everything)
        while missing:
            kinds = sorted(missing)
            left = await asyncio.gather(*(self._take_or_fail(kind) for kind in kinds))
            missing = {kind for kind, count in zip(kinds, left, strict=True) if count != 0}
            if missing:
                await asyncio.sleep(_LOOK_AGAIN_S)
        self._relisted.clear()
        self._wanted.clear()
        self.synced.set()
        on_synced()
        while True:
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._wanted.wait()
                await asyncio.sleep(SETTLE_S)
                kinds = tuple(self._relisted)
            except TimeoutError:
                kinds = everything
            self._wanted.clear()
            self._relisted.clear()
            for kind in kinds:
                await self._take_or_fail(kind)

    async def take(self, kind: str) -> int:
        """Drops from the store what is no more; answers how many there are that the store does not know yet."""
        before = dict(self._store.versions(kind))
        there = await self._list(kind)
        for name, version in before.items():
            if there.get(name) != version.uid:
                _LOG.info("%s %s went unnoticed", kind, "/".join(part for part in name if part))
                self._store.gone(kind, name, version.uid)
        known = self._store.versions(kind)
        return sum(name not in known for name in there)

    async def _take_or_fail(self, kind: str) -> int | None:
        try:
            return await self.take(kind)
        except (ApiError, msgspec.DecodeError) as error:
            _LOG.warning("census of %s: %s", KINDS[kind].plural, error)
            await asyncio.sleep(1.0)
            return None

    async def _list(self, kind: str) -> Mapping[Name, str]:
        """The uids of all that is watched of a kind."""
        in_release = kind in WATCHED_IN_RELEASE
        path = KINDS[kind].path(self._namespace if in_release else "")
        query = {"limit": _PAGE, **({"labelSelector": POOL_LABEL} if in_release else {})}
        found: dict[Name, str] = {}
        while True:
            content = await self._api.call("GET", path, accept=_NAMES_ONLY, query=query, timeout_s=_TIMEOUT_S)
            page = msgspec.json.decode(content, type=_List)
            found.update(_named(page.items or ()))
            if not page.metadata.next:
                return found
            query = {**query, "continue": page.metadata.next}


def _named(items: Iterable[_Item]) -> Iterable[tuple[Name, str]]:
    return (((item.metadata.namespace, item.metadata.name), item.metadata.uid) for item in items)

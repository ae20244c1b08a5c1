"""kopf, which watches for us. The only module, beside the entry point, that knows it; it is used for nothing else.

Two kopf operators run in the process's own loop: one watches CachePools, Datasets, Preloads and nodes in the whole
cluster; the other what belongs to pools, in the release's namespace only, so that the operator needs no rights to
anybody else's pods and ConfigMaps. All handlers are low-level event handlers that put what was seen into the store.
Nothing of kopf's own is ever written: no finalizer, no annotation, no peering, no Event; its comparing of old and new
is replaced by nothing, because the store compares.

kopf retries a request that fails after 0.5 to 2 s, for ever: an API server that comes back is noticed within two
seconds, and one that refuses (a right is missing) is asked again until somebody grants it. Watch requests end after
55 s on the server's side, and 65 s without a sign on ours; `watches` relies on that.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import kopf

from shoal_operator.api import Api
from shoal_operator.kinds import KINDS, WATCHED_EVERYWHERE, WATCHED_IN_RELEASE, Kind
from shoal_operator.model import Manifest
from shoal_operator.names import POOL_LABEL
from shoal_operator.observing import Store, number_of
from shoal_operator.watches import Watches

WATCH_S = 55
SILENCE_S = 65.0
_COMPLAIN_EVERY_S = 30.0
_PAGE = 250
"""Nodes are listed in pages: what a page takes in memory is let go before the next one comes."""

_BY_PLURAL = {kind.plural: kind.name for kind in KINDS.values()}


class _Delays:
    """Seconds before each next attempt; they never end. kopf begins anew with each request."""

    def __iter__(self) -> Iterator[float]:
        delay_s = 0.5
        while True:
            yield delay_s * random.uniform(0.8, 1.2)
            delay_s = min(2.0, delay_s * 2)


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf copies each object to compare it with its last state, even where nobody asked; not here."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """There is no progress to keep: handlers of events are called once."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


@dataclass
class Watching:
    """What the handlers do with what they hear."""

    api: Api
    store: Store
    watches: Watches
    relisted: Callable[[str], None]
    """Told of a kind when it was listed anew: what went before that is not in the list."""

    async def run(self, namespace: str, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Until `stop` is set. Returns or raises before that only when a kopf operator died: the process must end."""
        started = [asyncio.Event(), asyncio.Event()]
        everywhere = self._operator(WATCHED_EVERYWHERE, stop, started[0], clusterwide=True)
        in_release = self._operator(WATCHED_IN_RELEASE, stop, started[1], namespaces=[namespace])
        tasks = [asyncio.create_task(everywhere, name="kopf"), asyncio.create_task(in_release, name="kopf release")]
        tell = asyncio.create_task(_when_all(started, ready))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            tell.cancel()
            for task in tasks:
                task.cancel()

    async def _operator(self, kinds: Iterable[str], stop: asyncio.Event, started: asyncio.Event, **scope: Any) -> None:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        for name in kinds:
            self._watch(registry, KINDS[name])
        settings = _settings(kinds)
        # A name of our own: for its own kopf asks who runs it, and a container's user has no name.
        await kopf.operator(
            registry=registry, settings=settings, identity=cast(Any, "shoal-operator"), standalone=True,
            stop_flag=stop, ready_flag=started, **scope,
        )  # fmt: skip

    def _watch(self, registry: kopf.OperatorRegistry, kind: Kind) -> None:
        group, _, version = kind.api_version.rpartition("/")

        async def hear(event: Any, **_: Any) -> None:
            self._hear(kind.name, event["type"], event["object"])

        kopf.on.event(group, version, kind.plural, registry=registry, id=kind.plural)(hear)

    def _hear(self, kind: str, what: str | None, manifest: Manifest) -> None:
        self.watches.heard(kind)
        metadata = manifest["metadata"]
        if what == "DELETED":
            name = (str(metadata.get("namespace") or ""), str(metadata["name"]))
            self.store.gone(kind, name, str(metadata.get("uid", "")), number_of(metadata))
            return
        if what is None:
            self.relisted(kind)
        # A list's items do not say what they are.
        self.store.see(kind, {"apiVersion": KINDS[kind].api_version, "kind": kind, **manifest})

    async def _login(self, **_: Any) -> kopf.AiohttpSession:
        """A session that sends the token as it is now, and tells of every watch request that was answered."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._sign)
        trace.on_request_end.append(self._answered)
        server = self.api.server
        context = ssl.create_default_context(cafile=server.ca_file) if server.url.startswith("https:") else False
        connector = aiohttp.TCPConnector(limit=0, ssl=context)
        session = aiohttp.ClientSession(connector=connector, trace_configs=[trace])
        return kopf.AiohttpSession(server=server.url, aiohttp_session=session)

    async def _sign(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestStartParams
    ) -> None:
        request.headers.update(self.api.token.headers())

    async def _answered(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestEndParams
    ) -> None:
        if request.response.status == 401:
            self.api.token.forget()
        if request.response.status == 200 and request.url.query.get("watch") == "true":
            self.watches.heard(_BY_PLURAL.get(request.url.path.rsplit("/", 1)[-1], ""))


def _settings(kinds: Iterable[str]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = WATCH_S
    settings.watching.inactivity_timeout = SILENCE_S
    settings.watching.connect_timeout = 5.0
    settings.watching.reconnect_backoff = 0.1
    settings.watching.chunk_size = _PAGE
    settings.queueing.idle_timeout = 0.5
    settings.networking.connect_timeout = 5.0
    settings.networking.request_timeout = 60.0
    settings.networking.error_backoffs = _Delays()
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    for name in kinds:
        if name in WATCHED_IN_RELEASE:
            settings.watching.label_selectors[KINDS[name].plural] = POOL_LABEL
    return settings


def quiet(now_s: Callable[[], float] = time.monotonic) -> None:
    """kopf says at INFO what every handler does, and while the API server is away every watch complains every other
    second. Called once logging is set up."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Seldom(now_s))


class _Seldom(logging.Filter):
    """Of kopf's complaints one of a kind in half a minute, with the number of those that were left out."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        super().__init__()
        self._now_s = now_s
        self._said_s: dict[tuple[str, int], float] = {}
        self._left_out: dict[tuple[str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("kopf"):
            return True
        kind = (record.name, record.lineno)
        if self._now_s() - self._said_s.get(kind, float("-inf")) < _COMPLAIN_EVERY_S:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._said_s[kind] = self._now_s()
        if left_out := self._left_out.pop(kind, 0):
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more)", ()
        return True


async def _when_all(events: Iterable[asyncio.Event], then: Callable[[], None]) -> None:
    for event in events:
        await event.wait()
    then()

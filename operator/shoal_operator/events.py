"""Kubernetes Events on the objects that the operator looks after, for `kubectl describe`.

The same thing said again within an hour is the same Event with its count raised, and that at most every 10 s. One
object may not cause more than 20 new Events in five minutes. An Event that cannot be written is not worth a retry: what
matters is in the conditions. So nobody waits for them: they are written in the background, one after the other.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal_operator.api import MERGE, Api, ApiError
from shoal_operator.kinds import KINDS
from shoal_operator.model import Event, Manifest, Resource

_LOG = logging.getLogger("shoal.operator.events")

_SAME_WITHIN_S = 3600.0
_RAISE_EVERY_S = 10.0
_REMEMBERED_MAX = 1024
_NEW_MAX = 20
_NEW_WITHIN_S = 300.0
_WAITING_MAX = 256

_DEFAULT_NAMESPACE = "default"
"""Where Events of cluster-scoped objects are."""


@dataclass
class _Said:
    name: str
    namespace: str
    count: int
    first: str
    at_s: float


@dataclass
class _Share:
    """New Events of one object: when they were."""

    times_s: list[float] = field(default_factory=list[float])

    def take(self, now_s: float) -> bool:
        self.times_s = [at_s for at_s in self.times_s if now_s - at_s < _NEW_WITHIN_S]
        if len(self.times_s) >= _NEW_MAX:
            return False
        self.times_s.append(now_s)
        return True


class Recorder:
    """Takes Events, and writes them while `run` runs."""

    def __init__(self, api: Api, *, instance: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._instance = instance
        self._now_s = now_s
        self._said: OrderedDict[tuple[str, str, str, str], _Said] = OrderedDict()
        self._shares: OrderedDict[str, _Share] = OrderedDict()
        self._waiting: asyncio.Queue[tuple[str, Resource, Event]] = asyncio.Queue(_WAITING_MAX)

    def record(self, kind: str, about: Resource, event: Event) -> None:
        if not self._waiting.full():
            self._waiting.put_nowait((kind, about, event))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            kind, about, event = await self._waiting.get()
            try:
                await self._write(kind, about, event)
            except ApiError as error:
                _LOG.info("Event %s of %s %s: %s", event.reason, kind, about.name, error)

    async def _write(self, kind: str, about: Resource, event: Event) -> None:
        now_s = self._now_s()
        key = (about.uid, event.type, event.reason, event.message)
        said = self._said.get(key)
        if said is not None and now_s - said.at_s < _SAME_WITHIN_S:
            if now_s - said.at_s >= _RAISE_EVERY_S:
                await self._raise(key, said, now_s)
            return
        share = self._shares.setdefault(about.uid, _Share())
        if not share.take(now_s):
            return
        now = _now()
        said = _Said(f"{about.name}.{uuid.uuid4().hex[:16]}", about.namespace or _DEFAULT_NAMESPACE, 1, now, now_s)
        self._said[key] = said
        _trim(self._said, _REMEMBERED_MAX)
        _trim(self._shares, _REMEMBERED_MAX)
        await self._api.call("POST", KINDS["Event"].path(said.namespace), body=self._manifest(kind, about, event, said))

    async def _raise(self, key: tuple[str, str, str, str], said: _Said, now_s: float) -> None:
        said.count += 1
        said.at_s = now_s
        body = {"count": said.count, "lastTimestamp": _now()}
        path = KINDS["Event"].path(said.namespace, said.name)
        try:
            await self._api.call("PATCH", path, body=body, content_type=MERGE)
        except ApiError as error:
            if error.not_found:  # the server forgets them after an hour
                del self._said[key]
            raise

    def _manifest(self, kind: str, about: Resource, event: Event, said: _Said) -> Manifest:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": said.name, "namespace": said.namespace},
            "involvedObject": {
                "apiVersion": KINDS[kind].api_version,
                "kind": kind,
                "name": about.name,
                "uid": about.uid,
                **({"namespace": about.namespace} if about.namespace else {}),
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "count": said.count,
            "firstTimestamp": said.first,
            "lastTimestamp": said.first,
            "source": {"component": "shoal-operator"},
            "reportingComponent": "shoal.dev/operator",
            "reportingInstance": self._instance,
        }


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _trim(remembered: OrderedDict[tuple[str, str, str, str], _Said] | OrderedDict[str, _Share], most: int) -> None:
    while len(remembered) > most:
        remembered.popitem(last=False)

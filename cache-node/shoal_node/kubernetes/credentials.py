"""The credentials of a pool's data sets: each node reads the secrets itself, as its own account, into memory only.

The tenant decides: an account that may not get the secret reads nothing, and the data set's fills fail until it may;
what is cached is served all the while. A secret is read when its data set is declared, again every `READ_AGAIN_S`, and
soon after an origin refused it. In a large pool with many secrets that is spread over more time, so that all nodes
together ask the API server no more than `READS_PER_S_MAX` times a second. When the API server is away, what was read
before counts on; when it refuses what it gave before, that counts after `REFUSALS` times, because one that was just
started refuses what it has not read the rules for yet. No value of a secret is part of any text, file or answer.
"""

from __future__ import annotations

import base64
import binascii
import http
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal_core.errors import ConfigError, Forbidden
from shoal_node import origin_options
from shoal_node.kubernetes.api import Api, ApiError
from shoal_node.kubernetes.pool_state import PoolDataset, SecretPlace

if TYPE_CHECKING:
    from shoal_node.runtime import Node

READ_AGAIN_S = 60.0
READS_PER_S_MAX = 50
FAILED_AGAIN_S = 5.0
"""After a refusal or none: a grant is to show soon."""
REFUSALS = 3
REFUSED_AGAIN_S = 5.0
"""An origin that refuses, refuses every read; the secret is read again only after so long."""

_DENIED = (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN)
_CLOSE_S = 1.0
_LOG = logging.getLogger("shoal.pool")


class Error(NamedTuple):
    """As /status shows it."""

    code: str
    message: str


class _Kept:
    """One data set's."""

    def __init__(self, dataset: PoolDataset, place: SecretPlace) -> None:
        self.dataset = dataset
        self.place = place
        self.due_s = 0.0
        self.read_s = 0.0
        self.refusals = 0
        """Of the API server, in a row."""
        self.options: Mapping[str, str] | None = None
        """None: not read yet, or not to be had."""
        self.error: Error | None = None


class Credentials:
    """One for the node; `changed` is called with the name of a data set that is read with other credentials now."""

    def __init__(self, node: Node, api: Api, changed: Callable[[str], None]) -> None:
        self._node = node
        self._api = api
        self._changed = changed
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="shoal-credentials", daemon=True)

    def start(self) -> None:
        self._node.origins.own_options.refused = self.refused
        self._thread.start()

    def close(self) -> None:
        """Whoever closes this closes the Api first."""
        self._closed = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_S)

    def keep(self, datasets: Mapping[str, PoolDataset]) -> None:
        """These are all; those whose secret or source is another one wait for it to be read."""
        own_options = self._node.origins.own_options
        with self._lock:
            before, self._kept = self._kept, {}
            for name, dataset in datasets.items():
                if dataset.secret is None:
                    continue
                known = before.get(name)
                if known is None or _source(known.dataset) != _source(dataset):
                    known = _Kept(dataset, dataset.secret)
                    self._node.loop.call_soon_threadsafe(own_options.wait_for, name)
                known.dataset = dataset
                self._kept[name] = known
        self._wake.set()

    def refused(self, name: str) -> None:
        """An origin did not take them; on the loop."""
        with self._lock:
            kept = self._kept.get(name)
            if kept is None or time.monotonic() - kept.read_s < REFUSED_AGAIN_S:
                return
            kept.due_s = 0.0
        self._wake.set()

    def error(self, name: str) -> Error | None:
        with self._lock:
            kept = self._kept.get(name)
            return kept.error if kept is not None else None

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            with self._lock:
                now_s = time.monotonic()
                due = {name: kept for name, kept in self._kept.items() if kept.due_s <= now_s}
                next_s = min((kept.due_s for kept in self._kept.values()), default=now_s + READ_AGAIN_S)
            if not due:
                self._wake.wait(max(0.05, next_s - now_s))
                continue
            places: dict[SecretPlace, list[tuple[str, _Kept]]] = {}
            for name, kept in due.items():
                places.setdefault(kept.place, []).append((name, kept))
            for place, users in places.items():
                if self._closed:
                    return
                secret = self._read(place)
                for name, kept in users:
                    self._use(name, kept, secret)

    def _read(self, place: SecretPlace) -> dict[str, str] | ApiError:
        try:
            found = self._api.get(f"/api/v1/namespaces/{place.namespace}/secrets/{place.name}")
        except ApiError as error:
            return error
        data: dict[str, Any] = found.get("data") or {}
        return {str(key): _text(value) for key, value in data.items()}

    def _use(self, name: str, kept: _Kept, secret: dict[str, str] | ApiError) -> None:
        settings, options = kept.dataset.settings, kept.options
        error: Error | None = None
        if isinstance(secret, ApiError):
            kept.refusals = kept.refusals + 1 if secret.status in _DENIED else 0
            gone = secret.status == http.HTTPStatus.NOT_FOUND or kept.refusals >= REFUSALS
            if gone or options is None:
                error, options = _unread(name, kept.place, secret), None
        else:
            kept.refusals = 0
            try:
                options = origin_options.with_secret(settings.url, settings.endpoint, settings.region, secret)
            except ConfigError as wrong:
                error, options = Error("BadSource", f"secret {kept.place} of data set {name}: {wrong}"), None
        with self._lock:
            if self._kept.get(name) is not kept:
                return
            is_changed = options != kept.options or error != kept.error
            now_s = kept.read_s = time.monotonic()
            kept.options, kept.error = options, error
            kept.due_s = now_s + (FAILED_AGAIN_S if isinstance(secret, ApiError) or error else self._again_s())
        if not is_changed:
            return
        if error is not None:
            _LOG.warning("%s: %s", error.code, error.message)
        self._node.loop.call_soon_threadsafe(self._set, name, kept)

    def _set(self, name: str, kept: _Kept) -> None:
        """On the loop. What was taken from the pool meanwhile stays closed."""
        with self._lock:
            if self._kept.get(name) is not kept:
                return
            options, error = kept.options, kept.error
        if options is not None:
            self._node.origins.own_options.set(name, options)
        elif error is not None:
            self._node.origins.own_options.close(name, Forbidden(error.message))
        self._changed(name)

    def _again_s(self) -> float:
        peers = self._node.peers
        nodes = len(known.nodes) if peers is not None and (known := peers.cluster.router.view) is not None else 1
        all_s = len({kept.place for kept in self._kept.values()}) * nodes / READS_PER_S_MAX
        return max(READ_AGAIN_S, all_s) * random.uniform(0.8, 1.0)


def _source(dataset: PoolDataset) -> tuple[object, ...]:
    settings = dataset.settings
    return dataset.secret, settings.url, settings.endpoint, settings.region


def _text(value: object) -> str:
    try:
        return base64.b64decode(str(value), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _unread(name: str, place: SecretPlace, error: ApiError) -> Error:
    subject = f"secret {place} of data set {name}"
    if error.status == http.HTTPStatus.NOT_FOUND:
        return Error("SecretMissing", f"{subject}: there is no such secret")
    if error.status in _DENIED:
        return Error("CredentialsDenied", f"{subject}: the node's account may not read it ({error})")
    return Error("CredentialsPending", f"{subject}: it cannot be read now ({error})")

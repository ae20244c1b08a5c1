"""Follows the ConfigMap of a pool's state, in a thread of its own, and goes on whatever happens.

The object is listed once, then watched from there, with bookmarks, so that a watch that was cut goes on where it was.
A watch that falls silent is given up (`api.SILENCE_S`), one that is too old (410) begins again with a list, and what
fails is tried again after a pause that doubles up to `PAUSE_S_MAX`, with chance in it, because all nodes of a pool lose
their API server at the same moment. Meanwhile the node lives with what it has.

What was adopted last is kept in the state directory. A node that starts while the API server does not answer begins
with that; it is the last resort and not the first, because a pool of the same name may have been made anew since.
"""

from __future__ import annotations

import contextlib
import http
import logging
import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shoal_core.errors import ShoalError
from shoal_node.kubernetes import pool_state
from shoal_node.kubernetes.api import Api, ApiError
from shoal_node.kubernetes.pool_state import PoolState

PAUSE_S_FIRST = 0.2
PAUSE_S_MAX = 5.0
"""So that a node knows the truth within ten seconds of the API server's return."""

_CLOSE_S = 1.0
_FILE = "pool-state.json"
_LOG = logging.getLogger("shoal.pool")

Adopt = Callable[[PoolState], Sequence[str]]
"""Makes it so; returns what could not be."""


class PoolFollower:
    """`adopt` is called in the follower's thread, with each state that differs from the one before."""

    def __init__(self, api: Api, namespace: str, name: str, state_directory: str | None, adopt: Adopt) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._selector = {"fieldSelector": f"metadata.name={name}"}
        self._place = f"{namespace}/{name}"
        self._file = Path(state_directory) / _FILE if state_directory is not None else None
        self._adopt = adopt
        self._adopted: dict[str, str] | None = None
        """The documents that were adopted last."""
        self._trouble: str | None = None
        """Why the object cannot be seen."""
        self._complaint: str | None = None
        """What is wrong with what was seen."""
        self._failures = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shoal-pool", daemon=True)
        self._thread.start()

    @property
    def last_error(self) -> str | None:
        """Why what this node does is not what the pool's state says; None: it is."""
        return self._trouble or self._complaint

    def close(self) -> None:
        """Nothing is adopted that was not being adopted already. Whoever closes this closes the Api first."""
        self._closed.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while not self._closed.is_set():
            unforeseen: BaseException | None = None
            try:
                self._list_and_watch()
                continue
            except ShoalError as failed:
                error = str(failed)
            except Exception as failed:  # of `adopt`, or a bug: either way the next look may fare better
                error, unforeseen = f"{self._place}: {type(failed).__name__}: {failed}", failed
            if self._closed.is_set():
                return
            if error != self._trouble:
                _LOG.warning("the pool's state is not followed: %s", error, exc_info=unforeseen)
            self._trouble = error
            self._failures += 1
            if self._adopted is None:
                self._adopt_kept()
            pause_s = min(PAUSE_S_MAX, PAUSE_S_FIRST * 2 ** min(self._failures - 1, 10))
            self._closed.wait(pause_s * random.uniform(0.5, 1.0))

    def _list_and_watch(self) -> None:
        """Returns when it has to begin anew."""
        listed = self._api.get(self._path, self._selector)
        items = listed.get("items") or []
        if items:
            self._see(items[0])
        self._heard(None if items else f"there is no ConfigMap {self._place} yet")
        version = str(listed["metadata"]["resourceVersion"])
        while not self._closed.is_set():
            try:
                for event in self._api.watch(self._path, self._selector | {"resourceVersion": version}):
                    seen: dict[str, Any] = event.get("object") or {}
                    if event.get("type") == "ERROR":
                        raise ApiError(f"{self._place}: watch: {seen.get('message')}", int(seen.get("code") or 0))
                    version = str(seen["metadata"]["resourceVersion"])
                    if event["type"] == "DELETED":
                        self._heard(f"the ConfigMap {self._place} was deleted; what it said last holds on")
                    elif event["type"] != "BOOKMARK":
                        self._see(seen)
                        self._heard(None)
            except ApiError as error:
                if error.status == http.HTTPStatus.GONE:
                    return
                raise

    def _heard(self, trouble: str | None) -> None:
        if trouble is None and self._trouble is not None:
            _LOG.info("the pool's state is followed again")
        elif trouble is not None and trouble != self._trouble:
            _LOG.warning("%s", trouble)
        self._trouble = trouble
        self._failures = 0

    def _see(self, config_map: dict[str, Any]) -> None:
        data: dict[str, str] = config_map.get("data") or {}
        told = {name: data[name] for name in pool_state.DOCUMENTS if name in data}
        if told == self._adopted:
            return
        state = pool_state.parse(told)
        complaints = [*state.errors, *self._adopt(state)]
        self._complain(complaints)
        self._adopted = told
        if not state.errors:
            self._keep(told)

    def _complain(self, complaints: Sequence[str]) -> None:
        complaint = f"{self._place}: {'; '.join(complaints)}" if complaints else None
        if complaint is not None and complaint != self._complaint:
            _LOG.warning("the pool's state cannot be followed as it is: %s", complaint)
        self._complaint = complaint

    # Over a restart

    def _keep(self, told: dict[str, str]) -> None:
        """Replaced as a whole. That it cannot be kept matters only when the API server is down at the next start."""
        if self._file is None:
            return
        temporary = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(told))
            os.replace(temporary, self._file)
        except OSError as error:
            _LOG.warning("%s: the pool's state is not kept over a restart: %s", self._file, error.strerror or error)

    def _adopt_kept(self) -> None:
        if self._file is None:
            return
        told: dict[str, str] | None = None
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            told = msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        if told is None:
            return
        _LOG.warning("the pool's state is the one of before: %s", self._file)
        state = pool_state.parse(told)
        self._complain([*state.errors, *self._adopt(state)])
        self._adopted = told

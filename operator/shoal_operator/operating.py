"""The operator as a whole: its parts, put together, started in order, and watched over.

    CRDs will do -> watches -> first lists are in (census) -> this process leads (Lease) -> nodes are asked once
    -> the queue's gate opens, and every object is looked at

Watches and webhook run on every replica, so that the one that waits can take over at once and both can answer; polls,
reconciles and Events are the leader's. Each part is a task that runs until the process ends. One that ends by itself
is a failure of the process, which then exits non-zero for kubelet to start it again: nothing of it would be worth
keeping. On SIGTERM the Lease is given up first, so that the next process begins at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_operator import handlers, health, kinds, leader
from shoal_operator.api import Api, ApiError, find_server
from shoal_operator.census import Census
from shoal_operator.events import Recorder
from shoal_operator.metrics import Metrics
from shoal_operator.model import Settings
from shoal_operator.observing import Store
from shoal_operator.polling import Doors, Poller
from shoal_operator.pool_keys import Keys
from shoal_operator.queueing import Key, Queue
from shoal_operator.reconciling import Reconciler
from shoal_operator.schema import Schema
from shoal_operator.secret_access import SecretAccess
from shoal_operator.watches import Watches

_LOG = logging.getLogger("shoal.operator")

STUCK_S = 120.0
"""A key that waits longer than any reconcile may take means that the queue does not turn."""

FIRST_ROUND_S = 2.0
"""How long a new leader waits for the nodes' words before it writes statuses without them."""

POOL_INTERVAL_S = 0.5
"""A burst of node or pod events is two looks a second at each pool."""

_ENDING_S = 3.0


@dataclass(frozen=True)
class Options:
    """From flags and environment."""

    settings: Settings
    pod: str
    metrics_port: int
    webhook_port: int
    webhook_certificates: Path | None
    environment: Mapping[str, str]


class Operator:
    """One process. `run` answers its exit code."""

    def __init__(self, options: Options, api: Api, doors: Doors, keys: Keys) -> None:
        self._options = options
        self._api = api
        self._stop = asyncio.Event()
        namespace = options.settings.namespace
        self._metrics = Metrics()
        self._store = Store(self._changed)
        self._census = Census(api, self._store, namespace)
        self._watches = Watches(api, (*kinds.WATCHED_EVERYWHERE, *kinds.WATCHED_IN_RELEASE))
        self._schema = Schema(api)
        self._recorder = Recorder(api, instance=options.pod)
        self._access = SecretAccess(api, options.settings, changed=self._changed, active=self._working)
        self._poller = Poller(self._store, doors, answered=self._answered, active=self._working)
        reconciler = Reconciler(
            api=api,
            settings=options.settings,
            store=self._store,
            keys=keys,
            access=self._access,
            doors=doors,
            recorder=self._recorder,
            metrics=self._metrics,
        )
        self._queue = Queue(
            reconciler.reconcile,
            interval_s={"CachePool": POOL_INTERVAL_S},
            outcome=self._outcome,
            expected=(TimeoutError, ApiError),
        )
        self._election = leader.Election(
            api,
            namespace=namespace,
            name="shoal-operator",
            identity=f"{options.pod}_{secrets.token_hex(4)}",
            on_change=lambda _: self._leading_or_synced(),
        )
        self._opening: asyncio.Task[None] | None = None
        self._gauges()

    async def run(self) -> int:
        """Until SIGTERM or SIGINT (0), or until a part failed (1)."""
        self._on_signals()
        async with health.serve(
            "", self._options.metrics_port, alive=self._not_alive, ready=self._not_ready, metrics=self._metrics.render
        ):
            stopped = asyncio.create_task(self._stop.wait())
            beginning = asyncio.create_task(self._schema.wait())
            await asyncio.wait([stopped, beginning], return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return 0
            parts = [asyncio.create_task(part, name=name) for name, part in self._parts().items()]
            done, _ = await asyncio.wait([stopped, *parts], return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in done if task is not stopped]
            for task in failed:
                _LOG.error("%s ended: the process ends", task.get_name(), exc_info=_failure(task))
            self._queue.shut()
            if failed:
                return 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ENDING_S):
                    await self._election.give_up()
            return 0

    def _parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        watching = handlers.Watching(self._api, self._store, self._watches, self._census.soon)
        parts: dict[str, Coroutine[Any, Any, None]] = {
            "watching": watching.run(self._options.settings.namespace, self._stop, self._on_signals),
            "census": self._census.run(self._leading_or_synced),
            "election": self._election.run(),
            "queue": self._queue.run(),
            "polls": self._poller.run(),
            "access": self._access.run(),
            "events": self._recorder.run(),
        }
        if self._options.webhook_certificates is not None:
            from shoal_operator import webhook  # a web framework is 10 MiB; only where it is used

            app = webhook.make_app(self._store, self._metrics)
            certificates = self._options.webhook_certificates
            parts["webhook"] = webhook.serve(app, directory=certificates, port=self._options.webhook_port)
        return parts

    def _on_signals(self) -> None:
        """Called once more when kopf has started: it takes the signals for itself."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    def _changed(self, key: Key) -> None:
        self._queue.add(key)

    def _working(self) -> bool:
        return self._queue.gate.is_set()

    def _leading_or_synced(self) -> None:
        """Either changed: the gate is open while both are true."""
        if not (self._election.leading and self._census.synced.is_set()):
            self._queue.shut()
        elif not self._queue.gate.is_set() and (self._opening is None or self._opening.done()):
            self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        began_s = time.monotonic()
        asking = asyncio.create_task(self._poller.ask_due())
        await asyncio.wait([asking], timeout=FIRST_ROUND_S)
        if not self._election.leading:
            return
        for name in self._store.pools:
            self._queue.add(Key("CachePool", "", name))
        for kind, names in (("Dataset", self._store.datasets), ("Preload", self._store.preloads)):
            for name in names:
                self._queue.add(Key(kind, *name))
        self._queue.gate.set()
        _LOG.info("begins with %d objects after %.1f s", self._queue.depth(), time.monotonic() - began_s)
        await asking

    def _answered(self, pool: str, answered: bool) -> None:
        self._metrics.polls.labels(pool, "answered" if answered else "silent").inc()

    def _outcome(self, key: Key, seconds: float, error: BaseException | None) -> None:
        self._metrics.reconciles.labels(key.kind, "failed" if error else "done").inc()
        self._metrics.reconcile_seconds.labels(key.kind).observe(seconds)

    def _gauges(self) -> None:
        gauge = self._metrics.gauge
        gauge("leader", "Whether this process leads", lambda: float(self._election.leading))
        gauge("queue_depth", "Keys that are due or at work", lambda: float(self._queue.depth()))
        gauge("queue_oldest_seconds", "How long the most overdue key has waited", self._queue.oldest_s)
        gauge("watch_age_seconds", "Since the quietest watch was heard of", self._watches.age_s)
        gauge(
            "watches_dead", "Watches that nothing was heard of for too long", lambda: float(len(self._watches.silent()))
        )
        gauge("synced", "Whether the first lists are in", lambda: float(self._census.synced.is_set()))

    def _not_alive(self) -> str:
        if self._schema.wrong:
            return ""  # it waits, and /readyz says for what
        if silent := self._watches.silent():
            return f"nothing heard of {', '.join(silent)} for {self._watches.age_s():.0f} s"
        oldest_s = self._queue.oldest_s()
        return f"a key has waited for {oldest_s:.0f} s" if oldest_s > STUCK_S else ""

    def _not_ready(self) -> str:
        return self._schema.wrong or ("" if self._census.synced.is_set() else "the first lists are not in yet")


def _failure(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


async def run(options: Options) -> int:
    """One operator from its beginning to its end; the process's exit code."""
    async with Api(find_server(options.environment)) as api:
        keys = Keys(api, namespace=options.settings.namespace, instance=options.pod)
        async with Doors(keys) as doors:
            return await Operator(options, api, doors, keys).run()

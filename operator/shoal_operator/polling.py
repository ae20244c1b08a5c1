"""Asking the cache nodes how they are, and giving them orders: the only calls that go to nodes.

Every node whose pod runs is asked for its /status every 5 s; in a large cluster less often, so that asking stays below
8 calls a second, or 100 while something moves and people watch: a preload runs, a node drains, a data set was declared
within the last two minutes. Those that do not answer within a second are asked less and less, up to once a minute and
all of them together four times a second, until their pods change. At most 64 calls are open.
Nobody waits for any of this: an answer changes the store, and the store says what is to be looked at.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec

from shoal_operator import facts
from shoal_operator.api import ApiError
from shoal_operator.model import NodeReport, Order, Pod
from shoal_operator.observing import Store
from shoal_operator.pool_keys import Keys

_LOG = logging.getLogger("shoal.operator.polling")

EVERY_S = 5.0
SILENT_EVERY_S = 60.0
CALLS_PER_S = 8.0
"""A call takes about a millisecond of processor time: this is 1 %."""

CALLS_PER_S_IN_MOTION = 100.0
CALLS_PER_S_TO_SILENT = 4.0
MOTION_S = 120.0
"""How long a data set that was just declared is something that moves: its first scan is waited for."""

AT_ONCE = 64
TIMEOUT_S = 1.0
_LOOK_EVERY_S = 1.0
_STATUS_BYTES_MAX = 8 << 20

Answered = Callable[[str, bool], None]
"""Told of each poll: the pool, and whether the node answered."""


class Target(NamedTuple):
    """One node of one pool, at one address."""

    pool: str
    node: str
    address: str
    pod: tuple[str, float]
    """Which pod it is, and since when it is as ready as it is: a change of either begins the account anew."""


@dataclass
class _Account:
    target: Target
    asked_s: float = float("-inf")
    silences: int = 0
    silent_s: float = 0.0
    """How long it is left alone because it was silent."""


class Doors:
    """The control doors of all nodes."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._ordering: dict[str, asyncio.Task[None]] = {}
        self._open = asyncio.Semaphore(AT_ONCE)
        # Every node closes a connection that is idle for 5 s, which is about when it would be used again.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=AT_ONCE, force_close=True),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for task in self._ordering.values():
            task.cancel()
        await self._session.close()

    async def status(self, target: Target, at_s: float) -> NodeReport | None:
        """What the node says; None where it does not, or not within its second."""
        try:
            headers = await self._keys.headers(target.pool)
            status = await self._get(target, "/status", headers)
            drain = await self._get(target, "/drain", headers) if status.get("draining") is True else None
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, ApiError, ValueError) as error:
            _LOG.debug("%s of pool %s at %s: %s", target.node, target.pool, target.address, error)
            return None
        return facts.report(target.node, status, drain, at_s)

    def order(self, pool: str, drain: Iterable[Order], stop_drain: Iterable[Order]) -> None:
        """POST and DELETE /drain, in the background: a node that does not answer holds nobody up. What fails is ordered
        again by the next plan that wants it; until these are through, nothing more is ordered in that pool."""
        calls = [*((item, "POST") for item in drain), *((item, "DELETE") for item in stop_drain)]
        if calls and pool not in self._ordering:
            self._ordering[pool] = task = asyncio.create_task(self._order_all(pool, calls))
            task.add_done_callback(lambda _: self._ordering.pop(pool, None))

    async def ordered(self, pool: str) -> None:
        """Until the orders of that pool are through."""
        if task := self._ordering.get(pool):
            await task

    async def _order_all(self, pool: str, calls: list[tuple[Order, str]]) -> None:
        await asyncio.gather(*(self._order(pool, order, method) for order, method in calls))

    async def _order(self, pool: str, order: Order, method: str) -> None:
        try:
            headers = await self._keys.headers(pool)
            async with (
                self._open,
                self._session.request(method, f"http://{order.address}/drain", headers=headers) as answer,
            ):
                if answer.status >= 400 and answer.status not in (404, 405):
                    _LOG.warning("%s /drain of %s: %d %s", method, order.node, answer.status, await _beginning(answer))
        except (aiohttp.ClientError, TimeoutError, OSError, ApiError) as error:
            _LOG.info("%s /drain of %s: %s %s", method, order.node, type(error).__name__, error)

    async def _get(self, target: Target, path: str, headers: dict[str, str]) -> dict[str, Any]:
        async with self._open, self._session.get(f"http://{target.address}{path}", headers=headers) as answer:
            if answer.status != 200:
                raise ValueError(f"{path}: {answer.status}")
            content = await answer.content.read(_STATUS_BYTES_MAX)
            while not answer.content.at_eof() and len(content) < _STATUS_BYTES_MAX:
                content += await answer.content.read(_STATUS_BYTES_MAX - len(content))
        values = msgspec.json.decode(content)
        if not isinstance(values, dict):
            raise ValueError(f"{path}: not an object")
        return values


class Poller:
    """Asks every node in its turn, while `run` runs."""

    def __init__(
        self,
        store: Store,
        doors: Doors,
        *,
        answered: Answered,
        active: Callable[[], bool],
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
        self._store = store
        self._doors = doors
        self._answered = answered
        self._active = active
        self._now_s = now_s
        self._wall_s = wall_s
        self._chance = chance or random.Random()
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._declared: dict[str, tuple[frozenset[str], float]] = {}
        """By pool: what was declared when last looked, and when something was declared last."""
        self._seen = -1
        self._one_round = asyncio.Lock()

    async def run(self) -> None:
        """Until cancelled; only who leads asks."""
        while True:
            if self._active():
                await self.ask_due()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def ask_due(self) -> None:
        """One round: everybody whose turn it is."""
        async with self._one_round:
            if due := self.due():
                await self._round(due)

    def due(self) -> list[Target]:
        """Whom to ask now."""
        if self._seen != self._store.pods_changes:
            self._seen = self._store.pods_changes
            self._list()
        now_s, every_s = self._now_s(), self._every_s()
        return [
            account.target
            for account in self._accounts.values()
            if now_s - account.asked_s >= (account.silent_s or every_s)
        ]

    def _list(self) -> None:
        """Everybody there is. One whose pod is another, or ready or not ready since, is asked at once."""
        self._declared = {pool: self._declared[pool] for pool in self._declared.keys() & self._store.pools.keys()}
        before, self._accounts = self._accounts, {}
        for target in self._targets():
            place = (target.pool, target.node)
            account = before.get(place)
            self._accounts[place] = account if account and account.target == target else _Account(target)

    async def _round(self, due: list[Target]) -> None:
        began_s = self._now_s()
        first_s = max(EVERY_S, len(self._accounts) / CALLS_PER_S)
        silent = sum(account.silences > 0 for account in self._accounts.values())
        most_s = max(SILENT_EVERY_S, first_s, silent / CALLS_PER_S_TO_SILENT)
        reports = await asyncio.gather(*(self._doors.status(target, self._wall_s()) for target in due))
        by_pool: dict[str, list[NodeReport]] = {}
        for target, report in zip(due, reports, strict=True):
            self._answered(target.pool, report is not None)
            account = self._accounts.get((target.pool, target.node))
            if account is None or account.target != target:
                continue  # gone meanwhile, or another
            if report is not None:
                account.silences, account.silent_s = 0, 0.0
                by_pool.setdefault(target.pool, []).append(report)
            else:
                account.silences += 1
                wait_s = min(most_s, first_s * 2 ** min(account.silences - 1, 8))
                account.silent_s = wait_s * self._chance.uniform(0.75, 1.0)
            account.asked_s = began_s
        for pool, said in by_pool.items():
            if pool in self._store.pools:
                self._store.report(pool, said)

    def _every_s(self) -> float:
        moving = [pool for pool in self._store.pools if self._in_motion(pool)]
        return max(EVERY_S, len(self._accounts) / (CALLS_PER_S_IN_MOTION if moving else CALLS_PER_S))

    def _in_motion(self, pool: str) -> bool:
        known = self._store.of_pool(pool)
        declared, since_s = self._declared.get(pool, (frozenset[str](), float("-inf")))
        if known.declared - declared:
            since_s = self._now_s()
        self._declared[pool] = (known.declared, since_s)
        if self._now_s() - since_s < MOTION_S:
            return True
        if known.state is not None and known.state.data.get("preloads.json", "{}") not in ("", "{}"):
            return True
        return known.view is not None and any(node.status == "draining" for node in known.view.nodes)

    def _targets(self) -> Iterator[Target]:
        for name, pool in self._store.pools.items():
            if pool.spec is None:
                continue
            for pod in self._store.of_pool(name).pods.values():
                if _may_be_asked(pod):
                    host = f"[{pod.address}]" if ":" in pod.address else pod.address
                    identity = (pod.uid, pod.ready_since_s)
                    port = pod.control_port or pool.spec.ports.control  # its own: the spec may have changed since
                    yield Target(name, pod.node, f"{host}:{port}", identity)


def _may_be_asked(pod: Pod) -> bool:
    """Also one that is not ready: a node that drains is not, and tells how far it is."""
    return bool(pod.address and pod.node and pod.running)


async def _beginning(answer: aiohttp.ClientResponse) -> str:
    return (await answer.content.read(200)).decode(errors="replace").strip()

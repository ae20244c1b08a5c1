"""What the operator calls and how often: nodes that answer and nodes that do not, reviews, Events."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from shoal_operator import polling
from shoal_operator.api import Api, find_server
from shoal_operator.events import Recorder
from shoal_operator.facts import dataset as dataset_of
from shoal_operator.model import Event, Order, Resource, Settings
from shoal_operator.observing import Store
from shoal_operator.polling import Doors, Poller, Target
from shoal_operator.pool_keys import Keys
from shoal_operator.queueing import Key
from shoal_operator.secret_access import SecretAccess
from tests.cluster.cluster import Cluster
from tests.operator import running
from tests.support.operator_process import Release, events_of, free_port
from tests.support.played_nodes import Door

HERE = "127.0.61.1"
NOBODY = "127.0.61.2"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def release(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(control_plane, tmp_path_factory.mktemp("release"))


@pytest.fixture
def door() -> Iterator[tuple[Door, int]]:
    port = free_port()
    with Door(HERE, port) as opened:
        opened.status = running.status_of_node(tiers={"dram": {"used_bytes": 7}})
        yield opened, port


def with_api(release: Release, test: Callable[[Api], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with Api(find_server({"SHOAL_KUBERNETES_API": str(release.api_file)})) as api:
            await asyncio.wait_for(test(api), 30)

    asyncio.run(whole())


class Asking:
    """A poller over a store, with a clock that the test moves."""

    def __init__(self, api: Api, release: Release, port: int) -> None:
        self.clock = Clock()
        self.store = Store(lambda _: None)
        self._number = 0
        self.see("CachePool", "pool", spec={"dram": {"budget": "1Gi"}, "ports": {"control": port}})
        self.answers: list[bool] = []
        self.doors = Doors(Keys(api, namespace=release.namespace, instance="test"))
        self.poller = Poller(
            self.store,
            self.doors,
            answered=lambda _, answered: self.answers.append(answered),
            active=lambda: True,
            now_s=self.clock,
            wall_s=self.clock,
            chance=random.Random(1),
        )

    def see(self, kind: str, name: str, **content: Any) -> None:
        self._number += 1
        metadata = {"name": name, "uid": name, "resourceVersion": str(self._number), **content.pop("metadata", {})}
        self.store.see(kind, {"metadata": metadata, **content})

    def pod(self, node: str, address: str, since: str = "2026-01-01T00:00:00Z") -> None:
        status = {
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}],
            "containerStatuses": [{"name": "node", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        }
        metadata = {"namespace": "shoal-system", "labels": {"shoal.dev/pool": "pool"}}
        self.see("Pod", f"pod-{node}", metadata=metadata, spec={"nodeName": node}, status=status)

    def due(self) -> list[str]:
        return [target.node for target in self.poller.due()]


def test_who_answers_is_asked_every_five_seconds_and_who_does_not_less_and_less(
    release: Release, door: tuple[Door, int]
) -> None:
    async def test(api: Api) -> None:
        asking = Asking(api, release, door[1])
        async with asking.doors:
            asking.pod("here", HERE)
            asking.pod("away", NOBODY)
            assert asking.due() == ["here", "away"]
            await asking.poller.ask_due()
            assert asking.store.of_pool("pool").reports["here"].used_bytes == 7
            assert sorted(asking.answers) == [False, True]
            assert asking.due() == []
            waits: list[float] = []
            for _ in range(8):
                began_s = asking.clock.now
                while "away" not in asking.due():
                    asking.clock.now += 0.5
                waits.append(asking.clock.now - began_s)
                await asking.poller.ask_due()
            assert waits[0] <= 5.5 < waits[1] < waits[2]
            assert 45 <= waits[-1] <= polling.SILENT_EVERY_S
            asking.pod("away", HERE, "2026-01-01T00:00:09Z")  # another address, ready since just now
            assert "away" in asking.due()

    with_api(release, test)


def test_a_large_pool_is_asked_less_often(release: Release) -> None:
    async def test(api: Api) -> None:
        asking = Asking(api, release, 1)
        async with asking.doors:
            for number in range(400):
                asking.pod(f"node-{number}", "127.0.61.3")
            assert len(asking.due()) == 400
            await asking.poller.ask_due()
            asking.clock.now += 0.7 * 400 / polling.CALLS_PER_S
            assert asking.due() == []
            asking.clock.now += 0.3 * 400 / polling.CALLS_PER_S
            assert len(asking.due()) == 400
            for account in asking.poller._accounts.values():  # as if all had answered now
                account.asked_s, account.silent_s = asking.clock.now, 0.0
            asking.clock.now += polling.EVERY_S
            assert asking.due() == []
            state = {"namespace": "shoal-system", "labels": {"shoal.dev/pool": "pool"}}
            data = {"datasets.json": '{"team.images": {"url": "s3://bucket/images"}}'}
            asking.see("ConfigMap", "shoal-pool", metadata=state, data=data)
            assert len(asking.due()) == 400  # somebody waits for its first scan
            asking.clock.now += polling.MOTION_S
            for account in asking.poller._accounts.values():
                account.asked_s = asking.clock.now
            asking.clock.now += polling.EVERY_S
            assert asking.due() == []

    with_api(release, test)


def test_a_node_that_answers_nonsense_is_silent(release: Release, door: tuple[Door, int]) -> None:
    async def test(api: Api) -> None:
        asking = Asking(api, release, door[1])
        target = Target("pool", "here", f"{HERE}:{door[1]}", ("pod", 0.0))
        async with asking.doors:
            door[0].status = [1, 2]  # type: ignore[assignment]
            assert await asking.doors.status(target, 0.0) is None
            door[0].status = {"draining": True}
            door[0].drain = {"state": "drained"}
            report = await asking.doors.status(target, 5.0)
            assert report is not None
            assert report.draining
            assert ("GET", "/drain") in door[0].asked

    with_api(release, test)


def test_an_order_that_nobody_takes_is_no_failure(release: Release, door: tuple[Door, int]) -> None:
    async def test(api: Api) -> None:
        asking = Asking(api, release, door[1])
        orders = [Order("here", f"{HERE}:{door[1]}"), Order("away", f"{NOBODY}:{door[1]}")]
        async with asking.doors:
            asking.doors.order("pool", orders, [])
            asking.doors.order("pool", orders, [])  # the first are not through
            await asking.doors.ordered("pool")
        assert door[0].asked == [("POST", "/drain")]

    with_api(release, test)


def test_data_sets_of_one_secret_share_a_question(control_plane: Cluster, release: Release) -> None:
    team = control_plane.kubectl.namespace("team")

    def data_set(name: str, secret: str | None) -> Any:
        manifest = running.dataset(name, "pool", **({"secretRef": {"name": secret}} if secret else {}))
        manifest["metadata"]["namespace"] = team
        return dataset_of(manifest)

    async def test(api: Api) -> None:
        changed: list[Key] = []
        clock = Clock()
        settings = Settings(release.namespace, "example.test/shoal:1")
        access = SecretAccess(api, settings, changed=changed.append, active=lambda: True, now_s=clock)
        assert await access.allowed(data_set("none", None)) is None
        for name in ("a", "b"):
            assert await access.allowed(data_set(name, "keys")) is False
        assert len(access._questions) == 1
        place = ("--namespace", team)
        control_plane.kubectl.run(*place, "create", "role", "r", "--verb=get", "--resource=secrets")
        account = f"--serviceaccount={release.namespace}:shoal-pool"
        control_plane.kubectl.run(*place, "create", "rolebinding", "r", "--role=r", account)
        assert await access.allowed(data_set("a", "keys")) is False  # remembered
        await access.ask_due()
        assert changed == []
        async with asyncio.timeout(10):
            while not changed:  # the API server learns of a new right after a moment
                clock.now += 10
                await access.ask_due()
        assert sorted(key.name for key in changed) == ["a", "b"]
        assert await access.allowed(data_set("a", "keys")) is True
        assert await access.allowed(data_set("a", "others")) is True
        access.forget(Key("Dataset", team, "a"))
        access.forget(Key("Dataset", team, "b"))
        assert access._questions == {}

    with_api(release, test)


def test_the_same_said_again_is_one_event_and_many_are_too_many(control_plane: Cluster, release: Release) -> None:
    control_plane.kubectl.apply(json.dumps(running.pool("carp")))
    uid = control_plane.kubectl.get("cachepool", "carp")["metadata"]["uid"]
    about = Resource(name="carp", uid=uid)

    async def test(api: Api) -> None:
        clock = Clock()
        recorder = Recorder(api, instance="test", now_s=clock)

        async def say(message: str) -> None:
            await recorder._write("CachePool", about, Event("Warning", "Degraded", message))

        await say("buffered reads")
        await say("buffered reads")  # within 10 s: not even counted
        clock.now += 11
        await say("buffered reads")
        clock.now += 11
        await say("buffered reads")
        (event,) = events_of(control_plane, "carp")
        assert (event["count"], event["type"], event["reason"]) == (3, "Warning", "Degraded")
        assert event["metadata"]["namespace"] == "default"
        for number in range(40):
            await say(f"node {number}")
        assert len(events_of(control_plane, "carp")) == 20

    try:
        with_api(release, test)
    finally:
        running.discard(control_plane, "cachepool", "carp")

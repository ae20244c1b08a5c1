"""The running operator when things end: the leader, the API server, a watch, the CRDs it needs."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator

import pytest

from shoal_operator import handlers, operating, watches
from shoal_operator.api import Api, Server, find_server
from shoal_operator.census import Census
from shoal_operator.model import Settings
from shoal_operator.observing import Store
from shoal_operator.queueing import Key
from tests.cluster.cluster import Cluster
from tests.operator import running
from tests.operator.running import is_true
from tests.support import waiting
from tests.support.operator_process import OperatorProcess, Release

pytestmark = pytest.mark.slow

NET = 41


@pytest.fixture(scope="module")
def release(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    release = Release(control_plane, tmp_path_factory.mktemp("release"))
    try:
        yield release
    finally:
        release.end()


@pytest.fixture
def pair(release: Release) -> Iterator[tuple[OperatorProcess, OperatorProcess]]:
    """One that leads, and one that waits."""
    first = release.start("operator-a")
    waiting.until(first.leads, "the first leads", 20)
    second = release.start("operator-b")
    try:
        yield first, second
    finally:
        for process in (second, first):
            if process.process.poll() is None:
                process.end()


def test_the_leader_is_killed(
    control_plane: Cluster, release: Release, pair: tuple[OperatorProcess, OperatorProcess]
) -> None:
    first, second = pair
    assert second.metric("shoal_operator_leader") == 0
    assert second.ask("/healthz") == (200, "ok\n")
    with running.running_pool(control_plane, release, "plaice", NET, 2) as pool:
        first.kill()
        killed_s = time.monotonic()
        pool.nodes.say_not_ready("plaice-1")
        pool.until_view(20, n1="gone", n2="ready")
        control_plane.kubectl.until("cachepool", "plaice", is_true("Ready", status="False"), seconds=10)
        assert time.monotonic() - killed_s < 16  # a term, a renewal, and what a loaded machine adds
        assert second.leads()


def test_the_leader_is_told_to_end(pair: tuple[OperatorProcess, OperatorProcess]) -> None:
    first, second = pair
    assert first.end() == 0
    waiting.until(second.leads, "the second leads", 4)


def test_a_leader_that_was_frozen_ends_when_it_wakes_up(pair: tuple[OperatorProcess, OperatorProcess]) -> None:
    first, second = pair
    first.process.send_signal(signal.SIGSTOP)
    try:
        waiting.until(second.leads, "the second leads", 15)
    finally:
        first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(10) == 1
    assert "holds the Lease" in first.tail()
    assert second.leads()


def test_a_part_that_ends_ends_the_process(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf's operator returns where one of its tasks died."""

    async def dead(*_: object) -> None:
        raise RuntimeError("a watcher died")

    monkeypatch.setattr(handlers.Watching, "run", dead)
    environment = {"SHOAL_KUBERNETES_API": str(release.api_file)}
    settings = Settings(release.namespace, "example.test/shoal:1")
    options = operating.Options(settings, "operator-e", 0, 0, None, environment)
    assert asyncio.run(asyncio.wait_for(operating.run(options), 20)) == 1


def test_the_api_server_is_killed(control_plane: Cluster, release: Release) -> None:
    operator = release.start("operator-c")
    waiting.until(operator.leads, "it leads", 20)
    try:
        with running.running_pool(control_plane, release, "turbot", NET + 1, 2) as pool:
            control_plane.stop_api()
            try:
                waiting.until(lambda: operator.metric("shoal_operator_leader") == 0, "it begins nothing", 20)
                assert operator.ask("/healthz") == (200, "ok\n")
            finally:
                control_plane.start_api()
            back_s = time.monotonic()
            pool.nodes.say_not_ready("turbot-2")
            pool.until_view(15, n1="ready", n2="gone")
            control_plane.kubectl.until("cachepool", "turbot", is_true("Ready", status="False"), seconds=15)
            assert time.monotonic() - back_s < 10
            assert operator.process.poll() is None  # the same process all the while
    finally:
        operator.end()


def test_crds_that_are_too_old_are_waited_for(control_plane: Cluster, release: Release) -> None:
    kubectl = control_plane.kubectl
    crd = "preloads.shoal.dev"
    now = kubectl.get("crd", crd)["metadata"]["annotations"]["shoal.dev/schema-version"]
    kubectl.run("annotate", "--overwrite", "crd", crd, "shoal.dev/schema-version=0")
    operator = release.start("operator-d", ready=False)
    try:
        waiting.until(lambda: operator.answers("/readyz", 503), "it answers", 20)
        waiting.until(lambda: "SchemaTooOld" in operator.ask("/readyz")[1], "it says what it waits for", 10)
        assert operator.answers("/healthz")
        kubectl.run("annotate", "--overwrite", "crd", crd, f"shoal.dev/schema-version={now}")
        waiting.until(operator.leads, "it goes on", 20)
    finally:
        kubectl.run("annotate", "--overwrite", "crd", crd, f"shoal.dev/schema-version={now}")
        operator.end()


def test_what_went_while_nobody_watched_is_found_by_the_census(control_plane: Cluster, release: Release) -> None:
    told: list[Key] = []
    store = Store(told.append)
    kubectl = control_plane.kubectl
    kubectl.apply(json.dumps(running.pool("there")))
    try:
        store.see("CachePool", kubectl.get("cachepool", "there"))
        gone = running.pool("gone")
        gone["metadata"] |= {"uid": "u", "resourceVersion": "1"}
        store.see("CachePool", gone)
        told.clear()

        async def take() -> int:
            async with Api(find_server({"SHOAL_KUBERNETES_API": str(release.api_file)})) as api:
                return await Census(api, store, release.namespace).take("CachePool")

        asyncio.run(take())
        assert "there" in store.pools
        assert "gone" not in store.pools
        assert Key("CachePool", "", "gone") in told
    finally:
        running.discard(control_plane, "cachepool", "there")


def test_a_silent_watch_is_dead_unless_the_server_was_away() -> None:
    now_s = 1000.0

    async def test() -> None:
        nonlocal now_s
        async with Api(Server("http://127.0.0.1:1", None, None), now_s=lambda: now_s) as api:
            account = watches.Watches(api, ["Node", "Pod"], lambda: now_s)
            api.note(answered=True)
            now_s += watches.SILENT_MOST_S - 1
            account.heard("Pod")
            assert account.silent() == []
            now_s += 2
            assert account.silent() == ["Node"]
            api.note(answered=False)
            now_s += 1000
            assert account.silent() == []
            api.note(answered=True)
            now_s += 100
            assert account.silent() == []
            account.heard("Pod")
            now_s += 21
            assert account.silent() == ["Node"]

    asyncio.run(test())

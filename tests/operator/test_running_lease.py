"""Who leads, against a real API server: one of two, another after it, nobody while the server is away."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shoal_operator.api import Api, Server, find_server
from shoal_operator.leader import RENEW_DEADLINE_S, TERM_S, Election, LostLease, Seen
from tests.cluster.cluster import Cluster
from tests.support.operator_process import ACCOUNT, Release


@pytest.fixture(scope="module")
def release(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Its account may hold any Lease: every test elects by one of its own."""
    release = Release(control_plane, tmp_path_factory.mktemp("release"))
    place = ("--namespace", release.namespace)
    control_plane.kubectl.run(*place, "create", "role", "leases", "--verb=get,create,update", "--resource=leases")
    account = f"--serviceaccount={release.namespace}:{ACCOUNT}"
    control_plane.kubectl.run(*place, "create", "rolebinding", "leases", "--role=leases", account)
    return release


def test_a_lease_is_free_when_nobody_holds_it_or_its_holder_is_silent() -> None:
    seen = Seen()
    seen.look("other", "1", 100.0)
    assert not seen.free("me", 100.0 + TERM_S - 0.1)
    seen.look("other", "2", 107.0)  # renewed: the term begins anew, on our clock
    assert not seen.free("me", 107.0 + TERM_S - 0.1)
    assert seen.free("me", 107.0 + TERM_S)
    assert seen.free("other", 107.0)
    seen.look("", "3", 108.0)
    assert seen.free("me", 108.0)


class Candidate:
    """One process's part in the election. Its clock can be put forward."""

    def __init__(self, api: Api, namespace: str, name: str, identity: str) -> None:
        self.ahead_s = 0.0
        self.changes: list[bool] = []
        loop = asyncio.get_running_loop()
        self.election = Election(
            api,
            namespace=namespace,
            name=name,
            identity=identity,
            on_change=self.changes.append,
            now_s=lambda: loop.time() + self.ahead_s,
            chance=random.Random(1),
        )


@asynccontextmanager
async def running(candidate: Candidate) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(candidate.election.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what the election knows has no event
            await asyncio.sleep(0.01)


def elect(release: Release, test: Callable[[Callable[[str], Candidate]], Awaitable[None]]) -> None:
    async def whole() -> None:
        name = f"lease-{uuid.uuid4().hex[:8]}"
        async with Api(find_server({"SHOAL_KUBERNETES_API": str(release.api_file)})) as api:
            await test(lambda identity: Candidate(api, release.namespace, name, identity))

    asyncio.run(whole())


def test_the_second_waits_until_the_first_gives_up(release: Release) -> None:
    async def test(candidate: Callable[[str], Candidate]) -> None:
        first, second = candidate("first"), candidate("second")
        async with running(first):
            await until(lambda: first.election.leading)
            async with running(second):
                await until(lambda: second.election._seen.holder == "first")
                assert not second.election.leading
                await first.election.give_up()
                assert first.changes == [True, False]
                await until(lambda: second.election.leading)

    elect(release, test)


def test_the_second_takes_over_when_the_first_is_silent_for_a_term(release: Release) -> None:
    async def test(candidate: Callable[[str], Candidate]) -> None:
        first, second = candidate("first"), candidate("second")
        async with running(first):
            await until(lambda: first.election.leading)
        # Killed: nothing was given up.
        async with running(second):
            await until(lambda: second.election._seen.holder == "first")
            second.ahead_s = TERM_S
            await until(lambda: second.election.leading)

    elect(release, test)


def test_who_finds_another_in_its_place_ends(release: Release) -> None:
    async def test(candidate: Callable[[str], Candidate]) -> None:
        first, second = candidate("first"), candidate("second")
        async with running(first) as task:
            await until(lambda: first.election.leading)
            second.ahead_s = 0.0
            await second.election._once()
            second.ahead_s = TERM_S
            await second.election._once()
            assert second.election.leading
            with pytest.raises(LostLease, match="second holds the Lease"):
                await asyncio.wait_for(task, 10)
            assert first.changes == [True, False]

    elect(release, test)


def test_who_cannot_renew_begins_nothing_and_goes_on_later(control_plane: Cluster, release: Release) -> None:
    async def test(candidate: Callable[[str], Candidate]) -> None:
        only = candidate("only")
        async with running(only):
            await until(lambda: only.election.leading)
            control_plane.stop_api()
            try:
                only.ahead_s = RENEW_DEADLINE_S
                await until(lambda: not only.election.leading)
            finally:
                control_plane.start_api()
            await until(lambda: only.election.leading, 20)
            assert only.changes == [True, False, True]

    elect(release, test)


def test_where_the_server_is(tmp_path: Path) -> None:
    file = tmp_path / "api.json"
    file.write_text(json.dumps({"server": "https://10.0.0.1:6443/", "ca_file": "/ca", "token_file": "/token"}))
    assert find_server({"SHOAL_KUBERNETES_API": str(file)}) == Server("https://10.0.0.1:6443", "/ca", "/token")
    in_pod = find_server({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"})
    assert in_pod.url == "https://[fd00::1]:443"
    with pytest.raises(LookupError, match="SHOAL_KUBERNETES_API"):
        find_server({})

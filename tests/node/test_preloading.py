"""Preloads: each node brings its own share, sums are exact, and what cannot be had is said, not tried for ever."""

from __future__ import annotations

import time
from typing import Any

import pytest

import shoal
from shoal_node import preload_filling
from shoal_node.preload_list import PreloadList, Row
from tests.support import waiting
from tests.support.pools import BLOCK, MakePool, Pool
from tests.support.s3_server import S3Server

TASK = "team/warm/run-1"
SET = "team.set"


def objects(server: S3Server, bucket: str, sizes: list[int]) -> int:
    """Puts so many; their bytes."""
    for number, size in enumerate(sizes):
        server.put(bucket, f"set/part-{number % 3}/{number:04}", bytes([number % 251]) * size)
    return sum(sizes)


def summed(pool: Pool, name: str = TASK) -> dict[str, Any]:
    told = pool.preload(name)
    numbers = [key for key, value in told[0].items() if isinstance(value, int) and key != "epoch"]
    return {key: sum(each[key] for each in told) for key in numbers}


def is_over(pool: Pool, state: str = "done", name: str = TASK) -> bool:
    told = pool.preload(name)
    return all(each["state"] == state and each["epoch"] == pool.epoch for each in told)


def held_bytes(pool: Pool) -> int:
    """Of blocks, over all nodes, in any tier."""
    total = 0
    for node in pool.running.values():
        with node.node.step() as state:
            total += sum(state.index.size[entry] for entry in state.index.linked())
    return total


@pytest.mark.parametrize("replicas", [1, 2])
def test_sums_are_exact(make_pool: MakePool, s3_environment: S3Server, replicas: int) -> None:
    sizes = [number * 997 % (3 * BLOCK) for number in range(300)]
    bucket = f"preload-{replicas}"
    size = objects(s3_environment, bucket, sizes)
    pool = make_pool()
    pool.datasets[SET] = {"url": f"s3://{bucket}/set", "replicas": replicas}
    pool.start(3)
    pool.preloads[TASK] = {"dataset": SET}
    pool.publish()
    waiting.until(lambda: is_over(pool), "all nodes are done", 60)
    assert summed(pool) == {
        "objects_scanned": 300, "objects_done": 300, "objects_failed": 0, "bytes_scanned": replicas * size,
        "bytes_done": replicas * size, "bytes_verified": replicas * size, "bytes_owned": replicas * size,
    }  # fmt: skip
    assert all(each["errors"] == [] for each in pool.preload(TASK))
    assert held_bytes(pool) == replicas * size
    gets = s3_environment.gets(bucket)
    assert gets <= 300 + len([one for one in sizes if one > BLOCK]) * 2, "the origin is asked once for all copies"
    with shoal.connect(pool[1].tcp_address) as client:
        assert client.read("shoal://team.set/part-1/0100") == bytes([100]) * sizes[100]
    assert s3_environment.gets(bucket) == gets
    pool.preloads = {}
    pool.publish()
    pool.preloads = {"team/warm/run-2": {"dataset": SET}}
    pool.publish()
    waiting.until(lambda: is_over(pool, name="team/warm/run-2"), "it is there already", 60)
    assert summed(pool, "team/warm/run-2")["bytes_done"] == replicas * size
    assert s3_environment.gets(bucket) == gets, "nothing is brought twice"


def test_paths_and_patterns(make_pool: MakePool, s3_environment: S3Server) -> None:
    objects(s3_environment, "preload-paths", [BLOCK] * 30)
    s3_environment.put("preload-paths", "set/part-1.txt", b"x" * 10)
    pool = make_pool()
    pool.datasets[SET] = {"url": "s3://preload-paths/set", "exclude": ["**/0001"]}
    pool.start(2)
    pool.preloads = {
        "team/a/1": {"dataset": SET, "paths": ["part-1", "part-1/0004", "part-2/0002"]},
        "team/b/1": {"dataset": SET, "paths": ["part-1.txt"]},
        "team/c/1": {"dataset": SET, "paths": ["part-7/"]},
        "team/d/1": {"dataset": "team.none"},
    }
    pool.publish()
    for name, count in (("team/a/1", 10), ("team/b/1", 1)):
        waiting.until(lambda name=name: is_over(pool, name=name), f"{name} is done")
        assert summed(pool, name)["objects_done"] == count
    waiting.until(lambda: is_over(pool, "failed", "team/c/1") and is_over(pool, "failed", "team/d/1"), "they fail", 30)
    assert "part-7: there is no object" in pool.preload("team/c/1")[0]["errors"][0]
    assert "no data set team.none" in pool.preload("team/d/1")[0]["errors"][0]


def test_a_view_that_changes_begins_it_anew(make_pool: MakePool, s3_environment: S3Server) -> None:
    size = objects(s3_environment, "preload-view", [BLOCK] * 60)
    pool = make_pool()
    pool.datasets[SET] = {"url": "s3://preload-view/set"}
    pool.start(2)
    pool.preloads[TASK] = {"dataset": SET, "bytes_per_s": 30 * BLOCK}
    pool.publish()
    waiting.until(lambda: summed(pool)["bytes_done"] > 0, "it has begun")
    pool.add(3)
    pool.publish()
    waiting.until(lambda: is_over(pool), "all nodes are done under the new view", 60)
    assert summed(pool)["bytes_verified"] == summed(pool)["bytes_owned"] == size
    assert all(each["bytes_owned"] for each in pool.preload(TASK)), "each has a share"
    pool.rows["node-1"]["status"] = "draining"
    pool.publish()
    waiting.until(lambda: is_over(pool), "also when it had ended", 60)
    assert summed(pool)["bytes_verified"] == size and pool.preload(TASK)[0]["bytes_owned"] == 0


def test_a_rate_holds_roughly(make_pool: MakePool, s3_environment: S3Server) -> None:
    size = objects(s3_environment, "preload-rate", [BLOCK] * 80)
    pool = make_pool()
    pool.datasets[SET] = {"url": "s3://preload-rate/set"}
    pool.start(2)
    pool.preloads[TASK] = {"dataset": SET, "bytes_per_s": size / 6}
    start = time.monotonic()
    pool.publish()
    waiting.until(lambda: is_over(pool), "it is done", 40)
    assert 3 < time.monotonic() - start < 30
    assert summed(pool)["bytes_verified"] == size


def test_a_task_that_disappears_stops(make_pool: MakePool, s3_environment: S3Server) -> None:
    objects(s3_environment, "preload-stop", [BLOCK] * 60)
    pool = make_pool()
    pool.datasets[SET] = {"url": "s3://preload-stop/set"}
    pool.start(1)
    pool.preloads[TASK] = {"dataset": SET, "bytes_per_s": 5 * BLOCK}
    pool.publish()
    waiting.until(lambda: summed(pool)["bytes_done"] > 0, "it has begun")
    pool.preloads = {}
    pool.publish()
    assert pool[1].node.status()["preloads"] == {}
    waiting.until(lambda: pool[1].node.arrivals.flight_count == 0, "nothing is under way")
    gets = s3_environment.gets("preload-stop")
    assert gets < 60
    time.sleep(0.5)  # nothing tells of what does not happen
    assert s3_environment.gets("preload-stop") == gets


def test_what_does_not_fit_is_said_at_once(make_pool: MakePool, s3_environment: S3Server) -> None:
    objects(s3_environment, "preload-large", [BLOCK] * 80)
    pool = make_pool()
    pool.datasets |= {
        SET: {"url": "s3://preload-large/set", "quota_bytes": 20 * BLOCK},
        "team.pinned": {"url": "s3://preload-large/set"},
    }
    pool.start(1, overrides={"dram": {"budget_bytes": 60 * BLOCK}})
    pool.preloads = {TASK: {"dataset": SET}, "team/pinned/1": {"dataset": "team.pinned"}}
    pool.publish()
    for name, said in ((TASK, "quota of the data set"), ("team/pinned/1", "DRAM tier holds")):
        waiting.until(lambda name=name: is_over(pool, "failed", name), "it fails")
        assert said in pool.preload(name)[0]["errors"][0]
    assert s3_environment.gets("preload-large") == 0


def test_on_disk_and_after_a_restart(
    make_pool: MakePool, s3_environment: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """More than memory holds: it goes through memory to the disk, and is verified there."""
    size = objects(s3_environment, "preload-disk", [2 * BLOCK] * 150)
    pool = make_pool()
    pool.datasets[SET] = {"url": "s3://preload-disk/set"}
    directory = tmp_path_factory.mktemp("node")
    own = {
        "dram": {"budget_bytes": "8MiB"},
        "state_directory": str(directory / "state"),
        "nvme": [{"directory": str(directory / "disk"), "budget_bytes": "64MiB"}],
    }
    pool.start(1, overrides=own)
    pool.preloads[TASK] = {"dataset": SET}
    pool.publish()
    waiting.until(lambda: is_over(pool), "it is done", 60)
    assert summed(pool)["bytes_verified"] == size > pool[1].node.config.dram.budget_bytes
    pool[1].stop()
    gets = s3_environment.gets("preload-disk")
    pool.add(1, overrides=own)
    pool.publish()
    waiting.until(lambda: is_over(pool), "it is done again", 60)
    assert s3_environment.gets("preload-disk") == gets, "a node that is told to end writes what it has"


def test_a_copy_that_went_bad_is_brought_again(make_pool: MakePool, s3_environment: S3Server) -> None:
    size = objects(s3_environment, "preload-bad", [BLOCK] * 20)
    pool = make_pool()
    pool.datasets[SET] = {"url": "s3://preload-bad/set"}
    pool.start(1)
    pool.preloads[TASK] = {"dataset": SET}
    pool.publish()
    waiting.until(lambda: is_over(pool), "it is done")
    node = pool[1].node
    with node.step() as state:
        memory = node.entry_memory(state.index.linked()[0])
        memory[:8] = bytes(byte ^ 0xFF for byte in memory[:8])
    pool.preloads = {"team/warm/run-2": {"dataset": SET}}
    pool.publish()
    waiting.until(lambda: is_over(pool, name="team/warm/run-2"), "it is done")
    assert summed(pool, "team/warm/run-2")["bytes_verified"] == size == summed(pool, "team/warm/run-2")["bytes_done"]
    assert s3_environment.gets("preload-bad") == 21


def test_what_cannot_be_had_is_counted_and_the_rest_goes_on(
    make_pool: MakePool, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preload_filling, "_PAUSE_S", 0.02)
    objects(s3_environment, "preload-part", [BLOCK] * 30)
    pool = make_pool()
    pool.datasets[SET] = {"url": "s3://preload-part/set"}
    pool.start(2)
    fetch = {number: pool[number].node.origins.fetch for number in (1, 2)}

    async def broken(meta: Any, *arguments: Any, of: int, **options: Any) -> None:
        if meta.url.endswith(("0004", "0011")):
            s3_environment.delete("preload-part", "set/" + meta.url.split("/set/")[1])
        await fetch[of](meta, *arguments, **options)

    for number in (1, 2):

        async def each(meta: Any, *arguments: Any, number: int = number, **options: Any) -> None:
            await broken(meta, *arguments, of=number, **options)

        monkeypatch.setattr(pool[number].node.origins, "fetch", each)
    pool.preloads[TASK] = {"dataset": SET}
    pool.publish()
    waiting.until(lambda: all(each["state"] in ("done", "failed") for each in pool.preload(TASK)), "it ends", 40)
    told = summed(pool)
    assert (told["objects_scanned"], told["objects_done"], told["objects_failed"]) == (30, 28, 2)
    assert told["bytes_verified"] == told["bytes_done"] == 28 * BLOCK and told["bytes_owned"] == 30 * BLOCK
    errors = " ".join(error for each in pool.preload(TASK) for error in each["errors"])
    assert "0004" in errors and "0011" in errors


def test_readers_go_before(make_pool: MakePool, s3_environment: S3Server) -> None:
    objects(s3_environment, "preload-first", [4 * BLOCK] * 100)
    pool = make_pool()
    pool.datasets[SET] = {"url": "s3://preload-first/set"}
    pool.start(1)
    pool.preloads[TASK] = {"dataset": SET}
    pool.write()
    waiting.until(lambda: summed(pool).get("bytes_done", 0) > 0, "it has begun")
    with shoal.connect(pool[1].tcp_address) as client:
        start = time.monotonic()
        assert len(client.read("shoal://team.set/part-0/0099")) == 4 * BLOCK
        took = time.monotonic() - start
    waiting.until(lambda: is_over(pool), "it is done", 60)
    assert took < 2.0
    assert pool[1].node.filler.running == 0 and pool[1].node.arrivals.flight_count == 0
    with pool[1].node.step() as state:
        assert not any(state.index.leases), "nothing is held any more"


def test_the_list_of_objects(tmp_path: Any) -> None:
    kept = PreloadList(str(tmp_path))
    rows = [Row(f"s3://b/{number}", number, "e" * 30, number % 2 == 0, [number, 3]) for number in range(1000)]
    for row in rows:
        kept.add(row)
    assert list(kept.rows()) == list(kept.rows()) == rows
    kept.close()

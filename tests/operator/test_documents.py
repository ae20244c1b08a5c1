"""The pool state: what nodes are told."""

import json
from typing import Any

import msgspec
import pytest

from shoal_core import config, view
from shoal_operator import documents
from shoal_operator.model import State, Update
from tests.operator import worlds
from tests.operator.worlds import SETTINGS

POOL, VIEW = worlds.pool(), worlds.view_of("n1")
UPDATE = Update("n1", "draining", "uid", 1.0, 5, hands_over=True)


def written(*datasets: Any, preloads: Any = (), state: State | None = None) -> Any:
    return documents.write(POOL, SETTINGS, state, VIEW, None, datasets, preloads)


def told(*datasets: Any, preloads: Any = ()) -> Any:
    data = written(*datasets, preloads=preloads)["data"]
    return json.loads(data["datasets.json"]), json.loads(data["preloads.json"])


def test_the_config_map():
    made = documents.write(POOL, SETTINGS, None, VIEW, UPDATE, [], [])
    assert made is not None
    metadata = made["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("shoal-p", "shoal-system")
    assert metadata["ownerReferences"][0]["name"] == "p" and "resourceVersion" not in metadata
    assert view.parse(json.loads(made["data"]["view.json"])) == VIEW
    state = State("7", made["data"])
    assert documents.view_of(state) == VIEW and documents.update_of(state) == UPDATE
    assert documents.write(POOL, SETTINGS, state, VIEW, UPDATE, [], []) is None
    again = documents.write(POOL, SETTINGS, state, VIEW, None, [], [])
    assert again is not None and again["metadata"]["resourceVersion"] == "7"
    assert documents.update_of(State("8", again["data"])) is None


@pytest.mark.parametrize(
    "data", [{}, {"view.json": "{"}, {"view.json": "[]"}, {"view.json": '{"epoch": 0}'}, {"view.json": '{"nodes": 1}'}]
)
def test_a_state_that_somebody_broke_is_none(data: Any):
    state = State("1", {**data, "operator.json": '{"update": 3}', "datasets.json": "x"})
    assert documents.view_of(state) is None
    assert documents.update_of(state) is None
    assert documents.declared(state) == frozenset()


def test_there_may_be_no_state():
    assert documents.view_of(None) is None
    assert documents.update_of(None) is None
    assert documents.declared(None) == frozenset()


def test_a_plain_data_set():
    datasets, _ = told(worlds.dataset())
    assert datasets == {
        "team-a.images": {"url": "s3://bucket/images", "eviction": "s3fifo", "refresh_s": 60, "generation": 1}
    }


def test_a_data_set_with_everything():
    source = {
        "uri": "s3://b/p", "endpoint": "http://minio:9000", "region": "eu", "secretRef": {"name": "s3"},
        "include": ["*.tar"], "exclude": ["tmp/**"],
    }  # fmt: skip
    full = worlds.dataset(
        source=source, version={"refreshSeconds": 90}, replicas=2, eviction="Pin", quota="1Gi", ttlSeconds=60,
        meta={"generation": 4},
    )  # fmt: skip
    datasets, _ = told(full)
    assert datasets["team-a.images"] == {
        "url": "s3://b/p", "endpoint": "http://minio:9000", "region": "eu", "include": ["*.tar"], "exclude": ["tmp/**"],
        "secret": {"namespace": "team-a", "name": "s3"}, "eviction": "pin", "quota_bytes": 1 << 30, "ttl_s": 60,
        "replicas": 2, "refresh_s": 90, "generation": 4,
    }  # fmt: skip
    # All but the secret and the generation are what a node's own configuration calls them.
    known = {name: value for name, value in datasets["team-a.images"].items() if name not in ("secret", "generation")}
    msgspec.convert(known, config.Dataset)


@pytest.mark.parametrize("eviction", ["S3FIFO", "Epoch", "Pin"])
def test_every_eviction_is_one_that_nodes_know(eviction: str):
    datasets, _ = told(worlds.dataset(eviction=eviction))
    msgspec.convert({"url": "x", "eviction": datasets["team-a.images"]["eviction"]}, config.Dataset)


def test_what_is_being_deleted_or_cannot_be_read_is_not_served():
    gone = worlds.dataset("a", meta=worlds.being_deleted("shoal.dev/dataset"))
    odd = worlds.dataset("b", eviction="LFU")
    assert told(gone, odd, worlds.dataset("c"))[0].keys() == {"team-a.c"}
    state = State("1", written(worlds.dataset("c"))["data"])
    assert documents.declared(state) == {"team-a.c"}


def test_the_order_of_data_sets_is_no_change():
    one, other = worlds.dataset("a"), worlds.dataset("b")
    state = State("1", written(one, other)["data"])
    assert written(other, one, state=state) is None


def running(name: str = "warm", *, status: Any = None, **spec: Any):
    plain = worlds.preload(name, **spec)
    assert plain.spec is not None
    due = documents.scheduling.due(plain, plain.spec, "m", worlds.NOW_S)
    return worlds.preload(name, status={"run": due.run, "phase": "Filling", **(status or {})}, **spec), due.run


def test_a_preload_that_runs_is_a_task():
    warm, run = running(paths=["a/"], bytesPerSecond="1Gi", verify=False)
    _, tasks = told(worlds.dataset(), preloads=[warm])
    assert tasks == {
        f"team-a/warm/{run}": {"dataset": "team-a.images", "paths": ["a/"], "bytes_per_s": 1 << 30, "verify": False}
    }


@pytest.mark.parametrize(
    "other",
    [
        {"status": {"phase": "Complete"}}, {"status": {"phase": "Suspended"}}, {"status": {"run": ""}},
        {"suspend": True},
        {"status": {"run": "other-x-1"}}, {"dataset": "unknown"}, {"policy": "Twice"},
        {"meta": {"deletionTimestamp": "2025-11-24T16:00:00Z"}},
    ],
)  # fmt: skip
def test_a_preload_that_does_not_run_is_none(other: Any):
    _, run = running()
    status = {"run": run, "phase": "Filling", **other.get("status", {})}
    warm = worlds.preload(**{**other, "status": status})
    assert told(worlds.dataset(), preloads=[warm])[1] == {}


def test_a_preload_of_a_data_set_that_is_not_served_is_none():
    warm, _ = running(dataset="unknown")
    assert told(worlds.dataset(), preloads=[warm])[1] == {}


def test_who_may_read_the_secret():
    assert documents.secret_question(worlds.dataset(), SETTINGS) is None
    assert documents.secret_question(worlds.dataset(eviction="odd"), SETTINGS) is None
    question = documents.secret_question(
        worlds.dataset(source={"uri": "s3://b", "secretRef": {"name": "s3"}}), SETTINGS
    )
    assert question is not None
    assert question["spec"]["user"] == "system:serviceaccount:shoal-system:shoal-p"
    assert question["spec"]["resourceAttributes"] == {
        "namespace": "team-a", "verb": "get", "resource": "secrets", "name": "s3",
    }  # fmt: skip
    assert documents.ask_again_s(False) < documents.ask_again_s(True)

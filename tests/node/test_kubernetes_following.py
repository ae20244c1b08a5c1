"""Nodes that follow their pool's state in a real API server, also while that is away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shoal
from shoal_core.errors import BadRequest, ConfigError, NotFound
from shoal_node.kubernetes import api, following
from shoal_node.kubernetes.api import Api, ApiError
from tests.cluster.cluster import Cluster
from tests.support import waiting
from tests.support.pools import BLOCK, NAME, MakePool, Pool, status
from tests.support.s3_server import S3Server


def view_error(pool: Pool, number: int = 1) -> str | None:
    return status(pool[number])["cluster"]["view_error"]


@pytest.fixture
def data(s3_environment: S3Server) -> bytes:
    content = bytes(range(256)) * (3 * BLOCK // 256) + b"end"
    s3_environment.put("follow", "images/a", content)
    return content


def test_nodes_follow_the_view_and_the_data_sets(make_pool: MakePool, data: bytes) -> None:
    pool = make_pool()
    pool.datasets["team-a.images"] = {"url": "s3://follow/images", "replicas": 2, "generation": 1}
    pool.start(3)
    with shoal.connect(pool[1].tcp_address) as client:
        assert client.read("shoal://team-a.images/a") == data
    assert all(view_error(pool, number) is None for number in (1, 2, 3))
    pool.rows["node-3"]["status"] = "draining"
    pool.publish()
    assert {node.node.epoch for node in pool.running.values()} == {pool.epoch}
    assert status(pool[1])["cluster"]["nodes"]["node-3"]["status"] == "draining"
    pool.datasets["team-a.images"]["ttl_s"] = 500
    pool.datasets["team-b.texts"] = {"url": "s3://follow/texts", "generation": 1}
    pool.publish()
    spaces = {space.name: space for space in pool[2].node.state.spaces}
    waiting.until(lambda: {s.name: s for s in pool[2].node.state.spaces}["team-a.images"].ttl_s == 500, "ttl")
    assert spaces["team-b.texts"].url == "s3://follow/texts"


def test_what_is_wrong_with_one_costs_that_one(make_pool: MakePool, data: bytes) -> None:
    pool = make_pool()
    pool.datasets["team-a.images"] = {"url": "s3://follow/images", "generation": 1, "from_the_future": 7}
    pool.start(1)
    bad = {
        "team-a.files": {"url": "file:///etc"},
        "team-a.meta": {"url": "http://169.254.169.254/latest"},
        "team-a.small": {"url": "s3://follow", "quota_bytes": 5},
        "not a name": {"url": "s3://follow"},
    }
    pool.write(**{"datasets.json": json.dumps(pool.datasets | bad)})
    waiting.until(lambda: status(pool[1])["datasets"].keys() >= bad.keys(), "they are told")
    told = {name: status(pool[1])["datasets"][name]["error"] for name in bad}
    assert {error["code"] for error in told.values()} == {"BadSource"}
    assert "file:///mnt/" in told["team-a.files"]["message"] and "metadata" in told["team-a.meta"]["message"]
    assert "quota_bytes" in told["team-a.small"]["message"]
    assert pool[1].node.datasets.names == ["team-a.images"]
    # A change that cannot be leaves the data set as it was.
    changed = {"team-a.images": pool.datasets["team-a.images"] | {"quota_bytes": 5}}
    pool.write(**{"datasets.json": json.dumps(changed)})
    waiting.until(lambda: status(pool[1])["datasets"]["team-a.images"]["error"], "it is told")
    with shoal.connect(pool[1].tcp_address) as client:
        assert client.read("shoal://team-a.images/a") == data
        with pytest.raises(BadRequest, match="Dataset resources"):
            client.declare_dataset("mine", "s3://follow")


def test_documents_that_make_no_sense_leave_things_as_they_are(make_pool: MakePool, data: bytes) -> None:
    pool = make_pool()
    pool.datasets["team-a.images"] = {"url": "s3://follow/images"}
    pool.start(1)
    for document, text, said in (
        ("view.json", "{", "view.json: no JSON"),
        ("view.json", '{"epoch": 9}', "view.json: nodes"),
        ("datasets.json", "[]", "datasets.json: not a JSON object"),
        ("preloads.json", '{"x": 5}', "preloads.json: it is not a JSON object"),
        ("preloads.json", '{"x": {"dataset": "a", "paths": ["../b"]}}', "no '..'"),
        ("view.json", '{"epoch": 1, "nodes": []}', "epoch 1 is not later"),
    ):
        pool.write(**{document: text})
        waiting.until(lambda said=said: said in (view_error(pool) or ""), said)
        assert pool[1].node.epoch == pool.epoch and pool[1].node.datasets.names == ["team-a.images"]
    pool.publish()
    waiting.until(lambda: view_error(pool) is None, "it is followed again")


def test_the_api_server_is_away_for_a_while(
    make_pool: MakePool, data: bytes, control_plane: Cluster, s3_environment: S3Server
) -> None:
    pool = make_pool()
    secret = pool.put_secret("creds", credentials(s3_environment))
    pool.grant("creds")
    pool.datasets["team-a.images"] = {
        "url": "s3://follow/images",
        "secret": secret,
        "endpoint": s3_environment.endpoint,
    }
    pool.start(2)
    waiting.until(lambda: pool.dataset("team-a.images").get("objects") == 1, "it is scanned")
    s3_environment.put("follow", "images/late", b"late")
    control_plane.stop_api()
    try:
        waiting.until(lambda: view_error(pool), "it is said")
        with shoal.connect(pool[1].tcp_address) as client:
            assert client.read("shoal://team-a.images/a") == data
            assert client.read("shoal://team-a.images/late") == b"late", "a fill needs no API server"
    finally:
        control_plane.start_api()
    pool.rows["node-2"]["zone"] = "elsewhere"
    pool.publish()
    waiting.until(lambda: view_error(pool) is None and view_error(pool, 2) is None, "all is well", 10)


def credentials(server: S3Server) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}


def test_a_node_starts_while_the_api_server_is_away(
    make_pool: MakePool, data: bytes, control_plane: Cluster, tmp_path: Path
) -> None:
    pool = make_pool()
    pool.datasets["team-a.images"] = {"url": "s3://follow/images"}
    own = {"state_directory": str(tmp_path / "state")}
    pool.start(1, overrides=own)
    waiting.until((tmp_path / "state" / "pool-state.json").exists, "it is kept")
    pool[1].stop()
    control_plane.stop_api()
    try:
        node = pool.add(1, overrides=own)
        waiting.until(lambda: node.node.epoch == pool.epoch, "it has the view of before", 20)
        with shoal.connect(node.tcp_address) as client:
            assert client.read("shoal://team-a.images/a") == data
    finally:
        control_plane.start_api()
    pool.publish()


def test_the_object_is_deleted_and_made_again(make_pool: MakePool, data: bytes) -> None:
    pool = make_pool()
    pool.datasets["team-a.images"] = {"url": "s3://follow/images"}
    pool.start(1)
    pool.delete("configmaps", NAME)
    waiting.until(lambda: "was deleted" in (view_error(pool) or ""), "it is said")
    assert pool[1].node.datasets.names == ["team-a.images"]
    pool.rows["node-1"]["zone"] = "b"
    pool.publish()
    waiting.until(lambda: view_error(pool) is None, "it is followed again")


def test_an_account_that_may_not_read_says_so(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.start(1)
    allowed = Api(*json.loads(pool.api_file.read_text()).values())
    assert allowed.get(f"/api/v1/namespaces/{pool.namespace}/configmaps/{NAME}")["data"]["view.json"]
    for path in ("configmaps", "secrets", "secrets/any"):
        with pytest.raises(ApiError, match="403") as refused:
            allowed.get(f"/api/v1/namespaces/{pool.namespace}/{path}")
        assert refused.value.status == 403
    good = pool.token_file.read_text()
    pool.token_file.write_text("none")
    with pytest.raises(ApiError, match="401"):
        allowed.get("/api/v1/namespaces")
    pool.token_file.write_text(good)
    other = Api(allowed.server, None, str(pool.token_file))
    with pytest.raises(ApiError, match="certificate"):
        other.get("/version")
    with pytest.raises(ApiError, match="refused"):
        Api("http://127.0.0.1:1", None, None).get("/version")


def test_a_removed_data_set_is_gone_and_can_come_back(
    make_pool: MakePool, data: bytes, s3_environment: S3Server, tmp_path: Path
) -> None:
    pool = make_pool()
    images = {"url": "s3://follow/images"}
    pool.datasets |= {"team-a.images": images, "team-a.others": {"url": "s3://follow"}}
    disk = {"directory": str(tmp_path / "disk"), "budget_bytes": "32MiB"}
    pool.start(1, overrides={"state_directory": str(tmp_path / "state"), "nvme": [disk]})
    node = pool[1].node
    with shoal.connect(pool[1].tcp_address) as client:
        assert client.read("shoal://team-a.images/a") == client.read("shoal://team-a.others/images/a") == data
        number = next(n for n, space in enumerate(node.state.spaces) if space.name == "team-a.images")
        held = [tier.slabs.space_used_bytes(number) for tier in node.state.tiers]
        assert held[0] >= len(data)
        del pool.datasets["team-a.images"]
        pool.publish()
        waiting.until(
            lambda: not any(t.slabs.space_used_bytes(number) for t in node.state.tiers), "its blocks are gone"
        )
        assert client.read("shoal://team-a.others/images/a") == data
    with shoal.connect(pool[1].tcp_address) as client:
        with pytest.raises(NotFound):
            client.read("shoal://team-a.images/a")
        assert "team-a.images" not in status(pool[1])["datasets"] | status(pool[1])["spaces"]
        gets = s3_environment.gets("follow", "images/a")
        pool.datasets["team-a.images"] = images
        pool.publish()
        assert client.read("shoal://team-a.images/a") == data
        assert s3_environment.gets("follow", "images/a") > gets, "nothing of it had been kept"
        assert len(node.state.spaces) == 4, "it has its number again"


def test_what_was_removed_while_a_node_was_away_is_gone_when_it_is_back(
    make_pool: MakePool, data: bytes, tmp_path: Path
) -> None:
    pool = make_pool()
    pool.datasets |= {"team-a.images": {"url": "s3://follow/images"}, "team-a.kept": {"url": "s3://follow/kept"}}
    disk = {"directory": str(tmp_path / "disk"), "budget_bytes": "32MiB"}
    own = {"state_directory": str(tmp_path / "state"), "nvme": [disk]}
    pool.start(1, overrides=own)
    with shoal.connect(pool[1].tcp_address) as client:
        client.read("shoal://team-a.images/a")
    pool[1].stop()
    del pool.datasets["team-a.images"]
    pool.write()
    pool.add(1, overrides=own)
    pool.publish()
    assert pool[1].node.datasets.names == ["team-a.kept"]
    waiting.until(lambda: not len(pool[1].node.state.index), "its blocks on disk are gone")


def test_a_watch_that_is_too_old_begins_anew(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    versions: list[str] = []
    watch = Api.watch

    def outdated(self: Api, path: str, query: dict[str, str]):
        versions.append(query["resourceVersion"])
        return watch(self, path, query | ({"resourceVersion": "1"} if len(versions) == 1 else {}))

    monkeypatch.setattr(Api, "watch", outdated)
    pool = make_pool()
    pool.start(1)
    pool.rows["node-1"]["zone"] = "b"
    pool.publish()
    assert view_error(pool) is None


def test_a_watch_that_fell_silent_is_noticed(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SILENCE_S", 0.3)
    pool = make_pool()
    pool.start(1)
    waiting.until(lambda: "no answer in time" in (view_error(pool) or ""), "it is said")
    pool.rows["node-1"]["zone"] = "b"
    pool.publish()


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "works inside a pod"), ("{", "JSONDecodeError"), ('{"server": "x"}', "is not an http"), ("{}", "'server'")],
)
def test_no_api_to_be_found(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process_node: object
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if text is not None:
        (tmp_path / "api.json").write_text(text)
        monkeypatch.setenv("SHOAL_KUBERNETES_API", str(tmp_path / "api.json"))
    with pytest.raises(ConfigError, match=said):
        in_process_node({"cluster": {"view": "kubernetes:shoal-system/shoal-p"}})  # type: ignore[operator]


def test_pauses_are_short_enough_to_know_the_truth_in_time() -> None:
    assert following.PAUSE_S_FIRST < following.PAUSE_S_MAX <= 5

"""Each data set is read with its own secret and with nobody else's; what the node may not read fails, and says so."""

from __future__ import annotations

import json

import pytest

import shoal
from shoal_core.errors import Forbidden, NotFound, OriginError
from shoal_node.kubernetes import credentials
from tests.cluster.cluster import Cluster
from tests.support import waiting
from tests.support.pools import BLOCK, MakePool, Pool, status
from tests.support.s3_server import S3Server

DATA = b"0123456789abcdef" * (2 * BLOCK // 16)


@pytest.fixture
def server(s3_server: S3Server) -> S3Server:
    """Nothing in the environment leads to it."""
    for name in ("a", "b", "c", "d"):
        s3_server.put("secrets", f"set/{name}", DATA)
    return s3_server


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "FAILED_AGAIN_S", 0.3)
    monkeypatch.setattr(credentials, "REFUSED_AGAIN_S", 0.2)


def right(server: S3Server) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}


def a_dataset(server: S3Server, secret: object, **more: object) -> dict[str, object]:
    return {"url": "s3://secrets/set", "endpoint": server.endpoint, "secret": secret, "generation": 1, **more}


def read(pool: Pool, url: str, number: int = 1) -> bytes:
    with shoal.connect(pool[number].tcp_address) as client:
        return client.read(url)


def test_same_objects_each_with_its_own_credentials(make_pool: MakePool, server: S3Server) -> None:
    pool = make_pool()
    secrets = {
        "good": right(server),
        "endings": {name: f"{value}\n" for name, value in right(server).items()},
        "whole": right(server) | {"AWS_ENDPOINT_URL": server.endpoint, "AWS_REGION": server.region},
        "wrong": right(server) | {"AWS_SECRET_ACCESS_KEY": "HIDE-this"},
        "half": {"AWS_ACCESS_KEY_ID": "HIDE-that"},
        "inside": right(server) | {"AWS_ENDPOINT_URL": "http://169.254.169.254"},
    }
    for name, values in secrets.items():
        pool.datasets[f"team.{name}"] = a_dataset(server, pool.put_secret(name, values))
        pool.grant(name)
    pool.datasets["team.whole"]["endpoint"] = pool.datasets["team.inside"]["endpoint"] = None
    pool.datasets["team.none"] = a_dataset(server, None)
    pool.start(1)
    for name in ("good", "endings", "whole"):
        assert read(pool, f"shoal://team.{name}/a") == DATA
    for name in ("wrong", "half", "inside", "none"):
        with pytest.raises(Forbidden):
            read(pool, f"shoal://team.{name}/a")
    expected = {
        "wrong": "CredentialsRejected",
        "half": "BadSource",
        "inside": "BadSource",
        "none": "CredentialsRejected",
    }
    for name, code in expected.items():
        waiting.until(lambda name=name, code=code: pool.error(f"team.{name}") == code, f"{name} is {code}")
    message = status(pool[1])["datasets"]["team.half"]["error"]["message"]
    assert f"{pool.namespace}/half" in message and "AWS_SECRET_ACCESS_KEY" in message
    assert "HIDE" not in json.dumps(status(pool[1]))
    found = pool.dataset("team.good")
    assert (found["objects"], found["bytes"], found["error"]) == (4, 4 * len(DATA), None)


def test_a_secret_that_is_missing_denied_and_then_granted(make_pool: MakePool, server: S3Server) -> None:
    pool = make_pool()
    place = {"namespace": pool.namespace, "name": "late"}
    pool.grant("late")
    pool.datasets["team.late"] = a_dataset(server, place)
    pool.datasets["team.denied"] = a_dataset(server, pool.put_secret("denied", right(server)))
    pool.start(2)
    waiting.until(lambda: pool.error("team.late") == "SecretMissing", "missing")
    waiting.until(lambda: pool.error("team.denied") == "CredentialsDenied", "denied")
    with pytest.raises(Forbidden, match=f"secret {pool.namespace}/denied of data set team.denied"):
        read(pool, "shoal://team.denied/a")
    pool.put_secret("late", right(server))
    pool.grant("denied")
    for name in ("team.late", "team.denied"):
        waiting.until(
            lambda name=name: pool.dataset(name).get("objects") == 4 and not pool.error(name), f"{name} is well"
        )
        assert read(pool, f"shoal://{name}/a") == read(pool, f"shoal://{name}/a", 2) == DATA


def test_rotated_and_withdrawn(make_pool: MakePool, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "READ_AGAIN_S", 0.3)
    pool = make_pool()
    pool.datasets["team.set"] = a_dataset(server, pool.put_secret("creds", right(server)))
    pool.grant("creds")
    pool.start(1)
    assert read(pool, "shoal://team.set/a") == DATA
    pool.put_secret("creds", right(server) | {"AWS_SECRET_ACCESS_KEY": "another"})
    waiting.until(lambda: pool.error("team.set") == "CredentialsRejected", "it is listed with the new ones")
    with pytest.raises(Forbidden):
        read(pool, "shoal://team.set/b")
    pool.put_secret("creds", right(server))
    waiting.until(lambda: not pool.error("team.set"), "all is well again")
    assert read(pool, "shoal://team.set/b") == DATA
    pool.delete("rolebindings", "read-creds", "/apis/rbac.authorization.k8s.io/v1")
    waiting.until(lambda: pool.error("team.set") == "CredentialsDenied", "the tenant took it back")
    with pytest.raises(Forbidden, match="may not read it"):
        read(pool, "shoal://team.set/c")
    gets = server.gets("secrets")
    assert read(pool, "shoal://team.set/b") == DATA, "what is cached is read all the same"
    assert server.gets("secrets") == gets


def test_an_origin_that_refuses_makes_the_node_look_again(make_pool: MakePool, server: S3Server) -> None:
    pool = make_pool()
    wrong = right(server) | {"AWS_SECRET_ACCESS_KEY": "old"}
    pool.datasets["team.set"] = a_dataset(server, pool.put_secret("creds", wrong))
    pool.grant("creds")
    pool.start(1)
    with pytest.raises(Forbidden):
        read(pool, "shoal://team.set/a")
    pool.put_secret("creds", right(server))  # the next look by itself is a minute away

    def is_read() -> bool:
        try:
            return read(pool, "shoal://team.set/a") == DATA
        except Forbidden:
            return False

    waiting.until(is_read, "it is read with the new ones")


def test_a_node_without_api_server_knows_no_secret(
    make_pool: MakePool, server: S3Server, control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pool = make_pool()
    pool.datasets["team.set"] = a_dataset(server, pool.put_secret("creds", right(server)))
    pool.grant("creds")
    directory = tmp_path_factory.mktemp("node")
    own = {
        "state_directory": str(directory / "state"),
        "nvme": [{"directory": str(directory / "disk"), "budget_bytes": "16MiB"}],
    }
    pool.start(1, overrides=own)
    assert read(pool, "shoal://team.set/a") == DATA
    with shoal.connect(pool[1].tcp_address) as client:
        info = client.info("shoal://team.set/a")
    pool[1].stop()
    kept = b"".join(path.read_bytes() for path in (directory / "state").iterdir())
    assert server.secret_key.encode() not in kept
    control_plane.stop_api()
    try:
        pool.add(1, overrides=own)
        waiting.until(lambda: pool.error("team.set") == "CredentialsPending", "it waits", 20)
        with shoal.connect(pool[1].tcp_address) as client:
            with pytest.raises(Forbidden):
                client.read("shoal://team.set/b")
            assert client.read(info) == DATA, "its blocks are on disk"
    finally:
        control_plane.start_api()
    waiting.until(lambda: not pool.error("team.set"), "it is read")
    assert read(pool, "shoal://team.set/b") == DATA


def test_what_a_scan_says(make_pool: MakePool, server: S3Server) -> None:
    pool = make_pool()
    secret = pool.put_secret("creds", right(server))
    pool.grant("creds")
    pool.datasets |= {
        "team.all": a_dataset(server, secret),
        "team.some": a_dataset(server, secret, include=["*"], exclude=["[cd]"]),
        "team.nobucket": a_dataset(server, secret) | {"url": "s3://no-such-bucket/x"},
        "team.empty": a_dataset(server, secret) | {"url": "s3://secrets/none"},
        "team.away": a_dataset(server, secret) | {"endpoint": "http://127.0.0.1:1"},
        "team.web": {"url": "http://127.0.0.1:1/x"},
    }  # fmt: skip
    pool.start(3)
    codes = {"all": "", "some": "", "nobucket": "NotFound", "empty": "NotFound", "away": "OriginUnreachable", "web": ""}
    for name, code in codes.items():
        waiting.until(
            lambda name=name, code=code: (
                pool.error(f"team.{name}") == code and (code or pool.dataset(f"team.{name}").get("manifest"))
            ),
            f"{name} is {code!r}",
            30,
        )
    found = {name: pool.dataset(f"team.{name}") for name in ("all", "some")}
    assert [each["objects"] for each in found.values()] == [4, 2]
    assert [each["bytes"] for each in found.values()] == [4 * len(DATA), 2 * len(DATA)]
    assert found["all"]["manifest"] != found["some"]["manifest"]
    scanned = [bool(status(node)["datasets"]["team.all"]["manifest"]) for node in pool.running.values()]
    assert scanned.count(True) == 1, "one node lists it"
    assert read(pool, "shoal://team.some/b") == DATA
    with pytest.raises(NotFound, match="excludes"):
        read(pool, "shoal://team.some/c")
    with shoal.connect(pool[2].tcp_address) as client:
        assert [info.url.rpartition("/")[2] for info in client.list("shoal://team.some")] == ["a", "b"]
    with pytest.raises(OriginError):
        read(pool, "shoal://team.away/a")
    server.put("secrets", "set/e", DATA)
    pool.datasets["team.all"]["generation"] = 2
    pool.publish()
    waiting.until(lambda: pool.dataset("team.all").get("objects") == 5, "it is listed anew")
    server.delete("secrets", "set/e")


def test_reads_are_counted_for_each_data_set(make_pool: MakePool, server: S3Server) -> None:
    pool = make_pool()
    pool.datasets["team.set"] = a_dataset(server, pool.put_secret("creds", right(server)))
    pool.grant("creds")
    pool.start(3)
    for _ in range(5):
        for number in (1, 2, 3):
            assert read(pool, "shoal://team.set/a", number) == DATA
    told = [status(node)["datasets"]["team.set"] for node in pool.running.values()]
    assert sum(each["misses"] for each in told) == len(DATA) // BLOCK
    assert sum(each["hits"] for each in told) == 14 * (len(DATA) // BLOCK)
    assert sum(each["cached_bytes"] for each in told) >= len(DATA)

"""WebDataset itself, in its own environment, reads tar shards through the cache, with workers of all kinds."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest

import shoal
from tests.hosts.conftest import RunHost
from tests.support.s3_server import S3Server

SHARDS, SAMPLES_PER_SHARD = 4, 6
BUCKET = "webdataset-shards"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first run makes the environment


def _content(key: str) -> bytes:
    chance = random.Random(key)
    return chance.randbytes(chance.randrange(1, 150_000))  # a block has 64 KiB here, so some samples lie in three


def _shard(number: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for sample in range(SAMPLES_PER_SHARD):
            key = f"{number:02}-{sample:02}"
            member = tarfile.TarInfo(f"{key}.bin")
            member.size = len(_content(key))
            tar.addfile(member, io.BytesIO(_content(key)))
    return out.getvalue()


EXPECTED = sorted(
    [key, hashlib.sha256(_content(key)).hexdigest()]
    for key in (f"{number:02}-{sample:02}" for number in range(SHARDS) for sample in range(SAMPLES_PER_SHARD))
)


@pytest.fixture(scope="module")
def shards(s3_server: S3Server) -> list[str]:
    """Keys of the tar files in BUCKET."""
    names = [f"train/{number:02}.tar" for number in range(SHARDS)]
    for number, name in enumerate(names):
        s3_server.put(BUCKET, name, _shard(number))
    return names


def test_every_sample_comes_once_whatever_starts_the_workers(
    shards: list[str], client: shoal.Client, run_host: RunHost
) -> None:
    ways = ("plain", "pipeline", "fork", "spawn", "forkserver")
    url = f"shoal+s3://{BUCKET}/train/{{00..{SHARDS - 1:02}}}.tar"
    found = run_host("webdataset", "read.py", ",".join(ways), url)
    assert {way: sorted(samples) for way, samples in found.items()} == dict.fromkeys(ways, EXPECTED)
    # The origin gave each byte once, to the node: nobody passed it by, and five readings were one.
    assert client.node_stats()["fill_bytes"] == sum(client.info(f"s3://{BUCKET}/{name}").size for name in shards)


def test_a_declared_data_set_and_a_file_system(
    shards: list[str], client: shoal.Client, run_host: RunHost, tmp_path: Path
) -> None:
    client.declare_dataset("pictures", f"s3://{BUCKET}/train")
    named = run_host("webdataset", "read.py", "plain", "shoal://pictures/{00..03}.tar")
    assert sorted(named["plain"]) == EXPECTED
    for number in range(SHARDS):
        (tmp_path / f"{number:02}.tar").write_bytes(_shard(number))
    local = run_host("webdataset", "read.py", "plain", f"shoal+file://{tmp_path}/{{00..03}}.tar")
    assert sorted(local["plain"]) == EXPECTED


def test_other_urls_are_read_as_before(client: shoal.Client, run_host: RunHost, tmp_path: Path) -> None:
    path = tmp_path / "00.tar"
    path.write_bytes(_shard(0))
    found = run_host("webdataset", "read.py", "plain", str(path), f"file:{path}", f"pipe:cat {path}")
    assert sorted(found["plain"]) == sorted(EXPECTED[:SAMPLES_PER_SHARD] * 3)


def test_the_library_itself_can_rewrite_urls_that_say_s3(
    shards: list[str], client: shoal.Client, run_host: RunHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOPEN_REWRITE", "s3://=shoal+s3://")
    found = run_host("webdataset", "read.py", "plain", *(f"s3://{BUCKET}/{name}" for name in shards))
    assert sorted(found["plain"]) == EXPECTED


def test_errors_name_the_url(client: shoal.Client, run_host: RunHost, s3_server: S3Server) -> None:
    s3_server.make_bucket(BUCKET)
    urls = {
        f"shoal+s3://{BUCKET}/none.tar": "FileNotFoundError",
        f"write:shoal+s3://{BUCKET}/new.tar": "ValueError",
        "shoal+ftp://host/x.tar": "ValueError",  # WebDataset's own
    }
    answers = run_host("webdataset", "refuse.py", *urls)
    for (url, kind), (bases, text) in zip(urls.items(), answers, strict=True):
        assert kind in bases
        assert url.removeprefix("write:").removeprefix("shoal+") in text

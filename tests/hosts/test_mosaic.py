"""MosaicML Streaming itself, in its own environment, reads MDS shards through the cache."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

import shoal
from tests.hosts.conftest import RunHost
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.s3_server import S3Server

BUCKET = "mosaic-shards"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first run makes the environment


def test_every_sample_comes_once_whatever_starts_the_workers(
    s3_server: S3Server, client: shoal.Client, run_host: RunHost, tmp_path: Path
) -> None:
    samples = run_host("mosaic", "write.py", str(tmp_path))
    for folder in ("plain", "zstd"):
        files = list((tmp_path / folder).iterdir())
        assert len(files) > 3  # the index, and several shards
        for file in files:
            s3_server.put(BUCKET, f"{folder}/{file.name}", file.read_bytes())
    client.declare_dataset("texts", f"s3://{BUCKET}/zstd")

    remote, local = f"shoal+s3://{BUCKET}/plain", tmp_path / "local"
    ways = [(way, remote, f"{local}/{way}") for way in ("none", "fork", "spawn")]
    ways.append(("none", "shoal://texts", f"{local}/named"))
    found = run_host("mosaic", "read.py", *(word for way in ways for word in way))
    assert [sorted(read) for read in found] == [samples] * len(ways)

    sizes = {folder: _size_bytes(tmp_path / folder) for folder in ("plain", "zstd")}
    for way in ("none", "fork", "spawn"):
        # Streaming's own copy: whole files under their own names, and nothing beside them.
        assert _size_bytes(local / way) == sizes["plain"]
    # Three readings that began without a copy asked S3 once.
    assert client.node_stats()["fill_bytes"] == sizes["plain"] + sizes["zstd"]


def test_a_download_names_its_url_ends_in_time_and_leaves_no_part_of_a_file(
    client: shoal.Client, run_host: RunHost, s3_server: S3Server, http_origin: HttpOrigin, tmp_path: Path
) -> None:
    content = random.Random(4).randbytes(700_000)  # more blocks than one request to the node asks for
    s3_server.put(BUCKET, "large", content)
    s3_server.put(BUCKET, "empty", b"")
    late = http_origin.put("/late.mds", content)
    http_origin.fail("/late.mds", Fault(gate=threading.Event(), after=1))
    local = tmp_path / "local"
    urls = [f"shoal+s3://{BUCKET}/{name}" for name in ("large", "empty", "none")]
    arguments = [word for url in urls for word in ("20", url)]
    answers = run_host("mosaic", "download.py", str(local), *arguments, "1.5", f"shoal+{late}", "9", "shoal+ftp://h/x")

    assert answers[:2] == [None, None]
    for (kinds, text), kind, url in zip(
        answers[2:],
        ("FileNotFoundError", "TimeoutError", "ValueError"),
        (f"s3://{BUCKET}/none", late, "shoal+ftp://h/x"),
        strict=True,
    ):
        assert kind in kinds
        assert url in text
    assert {path.name: path.read_bytes() for path in local.iterdir()} == {"large": content, "empty": b""}


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())

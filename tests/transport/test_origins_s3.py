"""Origins over a real S3 server."""

from __future__ import annotations

import asyncio
import os
import socket

import obstore
import pytest

from shoal_core.errors import Forbidden, NotFound, ObjectChanged, OriginError
from shoal_transport.origins import Origins
from tests.support.s3_server import S3Server
from tests.transport.origin_calls import SECONDS, on_loop, read, read_all


def settings(server: S3Server, bucket: str) -> dict[str, dict[str, str]]:
    return {f"s3://{bucket}": server.options}


@on_loop
async def test_reads_ranges_of_one_version(s3_server: S3Server) -> None:
    content = os.urandom(1_000_000)
    url = s3_server.put("origin-ranges", "dir/f", content)
    origins = Origins(settings(s3_server, "origin-ranges"))
    meta = await origins.head(url, timeout_s=SECONDS)
    assert meta.size == 1_000_000
    assert await read(origins, meta, 0, 1_000_000) == [content]
    assert b"".join(await read(origins, meta, 999_000, 400, 600)) == content[999_000:]
    s3_server.put("origin-ranges", "dir/f", os.urandom(1_000_000))
    with pytest.raises(ObjectChanged, match="s3://origin-ranges/dir/f"):
        await read(origins, meta, 10, 10)
    with pytest.raises(ObjectChanged):
        await read(origins, meta, 0, 1_000_000)
    s3_server.delete("origin-ranges", "dir/f")
    with pytest.raises(NotFound):
        await read(origins, meta, 10, 10)
    await origins.close()


KEYS = [
    "plain", "a b/c d", "é漢字🐟", "100%", "x%20y", "x%2Fy", "h#b", "file#12", "q?x=1&y", "st*r", "~[]{}|^`\"<>'",
    "a=b+c", "a:b", ".hidden", "...", "/".join(["k" * 127] * 8),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@on_loop
async def test_keys_are_taken_verbatim(s3_server: S3Server, key: str) -> None:
    assert len(key) <= 1024
    url = s3_server.put("origin-keys", key, key.encode())
    assert await read_all(url, settings(s3_server, "origin-keys")) == key.encode()


@on_loop
async def test_a_key_with_slashes_in_a_row_is_signed_rightly(s3_server: S3Server) -> None:
    """The server's file system makes one slash of two, but checks the signature of what was asked first."""
    s3_server.put("origin-slashes", "a/é#/b", b"x")
    assert await read_all("s3://origin-slashes/a/é#//b", settings(s3_server, "origin-slashes")) == b"x"
    wrong = {**s3_server.options, "secret_access_key": "wrong"}
    with pytest.raises(Forbidden):
        await read_all("s3://origin-slashes/a/é#//b", {"s3://origin-slashes": wrong})


@on_loop
async def test_a_listing_names_what_can_be_read(s3_server: S3Server) -> None:
    keys = ["list/a", "list/sub/é b", "list/sub/c%20d", "list/sub#1/q?x", "listing"]
    for key in keys:
        s3_server.put("origin-list", key, key.encode())
    origins = Origins(settings(s3_server, "origin-list"))
    for prefix in ("s3://origin-list/list", "s3://origin-list/list/"):
        listed = [meta async for chunk in origins.list(prefix, timeout_s=SECONDS) for meta in chunk]
        assert {meta.url for meta in listed} == {f"s3://origin-list/{key}" for key in keys[:4]}
    for meta in listed:
        assert await origins.head(meta.url, timeout_s=SECONDS) == meta
        assert (await read(origins, meta, 0, meta.size))[0].decode() in meta.url
    everything = [meta async for chunk in origins.list("s3://origin-list", timeout_s=SECONDS) for meta in chunk]
    assert len(everything) == 5


@on_loop
async def test_a_long_listing_comes_in_chunks(s3_server: S3Server) -> None:
    s3_server.make_bucket("origin-many")
    store = s3_server.store("origin-many")
    await asyncio.gather(*(obstore.put_async(store, f"{number:04}", b"") for number in range(1100)))
    origins = Origins(settings(s3_server, "origin-many"))
    chunks = [chunk async for chunk in origins.list("s3://origin-many", timeout_s=SECONDS)]
    assert [meta.url for chunk in chunks for meta in chunk] == [f"s3://origin-many/{n:04}" for n in range(1100)]
    assert len(chunks) == 2


@on_loop
async def test_missing_bucket_and_key(s3_server: S3Server) -> None:
    s3_server.make_bucket("origin-empty")
    origins = Origins({"s3://": s3_server.options})
    for url in ("s3://origin-empty/none", "s3://origin-empty/none/", "s3://origin-none/key"):
        with pytest.raises(NotFound, match=url):
            await origins.head(url, timeout_s=SECONDS)
    with pytest.raises(NotFound, match="NoSuchBucket"):
        await anext(aiter(origins.list("s3://origin-none", timeout_s=SECONDS)))
    assert [chunk async for chunk in origins.list("s3://origin-empty", timeout_s=SECONDS)] == []


@on_loop
async def test_wrong_credentials_are_refused_without_telling_them(s3_server: S3Server) -> None:
    url = s3_server.put("origin-secret", "f", b"x")
    wrong = {**s3_server.options, "secret_access_key": "WRONG-SECRET"}
    origins = Origins({"s3://origin-secret": wrong})
    with pytest.raises(Forbidden) as head:
        await origins.head(url, timeout_s=SECONDS)
    meta = await Origins(settings(s3_server, "origin-secret")).head(url, timeout_s=SECONDS)
    with pytest.raises(Forbidden) as fetch:
        await read(origins, meta, 0, 1)
    with pytest.raises(Forbidden) as listing:
        await anext(aiter(origins.list("s3://origin-secret", timeout_s=SECONDS)))
    for caught in (head, fetch, listing):
        text = str(caught.value)
        assert "s3://origin-secret" in text
        assert "403" in text
        assert "WRONG-SECRET" not in text
        assert s3_server.access_key not in text
        assert "Signature>" not in text and len(text) < 200
    assert "SignatureDoesNotMatch" in str(fetch.value)


@on_loop
async def test_settings_of_the_longest_prefix_count(s3_server: S3Server) -> None:
    url = s3_server.put("origin-prefix", "deep/er/f", b"x")
    broken = {**s3_server.options, "secret_access_key": "wrong"}
    for configured, works in (
        ({"s3://": broken, "s3://origin-prefix/deep/": s3_server.options}, True),
        ({"s3://origin-prefix": s3_server.options, "s3://origin-prefix/deep": broken}, False),
        ({"s3://origin-prefix": s3_server.options, "s3://origin-pre": broken, "s3://origin-prefix/de": broken}, True),
    ):
        if works:
            assert await read_all(url, configured) == b"x"
        else:
            with pytest.raises(Forbidden):
                await read_all(url, configured)


@on_loop
async def test_the_environment_is_enough(s3_environment: S3Server) -> None:
    url = s3_environment.put("origin-environment", "f", b"by environment")
    assert await read_all(url) == b"by environment"


@on_loop
async def test_an_origin_that_is_not_there_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else can take it
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        keys = {"access_key_id": "HIDE", "secret_access_key": "HIDE"}
        origins = Origins({"s3://b": {"endpoint": f"http://{host}", **keys}}, retry_count_max=1)
        with pytest.raises(OriginError, match=rf"s3://b/k: request to {host} failed: Connection refused"):
            await origins.head("s3://b/k", timeout_s=SECONDS)
    origins = Origins({"s3://b": {"endpoint": "http://no-such-host.invalid", **keys}}, retry_count_max=1)
    with pytest.raises(OriginError, match=r"no-such-host\.invalid failed: failed to lookup address"):
        await origins.head("s3://b/k", timeout_s=SECONDS)

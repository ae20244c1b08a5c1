"""Data sets that are read with options of their own, beside each other and while others read the same objects."""

from __future__ import annotations

import asyncio

import pytest

from shoal_core.errors import DeadlineExceeded, Forbidden, NotFound, OriginError
from shoal_transport.origins import ObjectMeta, Origins
from tests.support.s3_server import S3Server
from tests.transport.origin_calls import SECONDS, on_loop

BUCKET = "own-options"


async def content(origins: Origins, url: str, dataset: str) -> bytes:
    meta = await origins.head(url, timeout_s=SECONDS, dataset=dataset)
    buffer = bytearray(meta.size)
    await origins.fetch(meta, 0, [memoryview(buffer)], timeout_s=SECONDS, dataset=dataset)
    return bytes(buffer)


async def listed(origins: Origins, dataset: str) -> list[str]:
    chunks = origins.list(f"s3://{BUCKET}", timeout_s=SECONDS, dataset=dataset)
    return [meta.url async for chunk in chunks for meta in chunk]


@on_loop
async def test_the_same_objects_with_and_without_permission(s3_server: S3Server) -> None:
    url = s3_server.put(BUCKET, "f", b"content")
    origins = Origins({})
    origins.own_options.set("good", s3_server.options)
    origins.own_options.set("wrong", s3_server.options | {"secret_access_key": "HIDE"})
    origins.own_options.set("nothing", {"endpoint": s3_server.endpoint, "allow_http": "true"})
    refused: list[str] = []
    origins.own_options.refused = refused.append
    for _ in range(2):
        assert await content(origins, url, "good") == b"content"
        assert await listed(origins, "good") == [url]
        for name in ("wrong", "nothing"):
            with pytest.raises(Forbidden) as caught:
                await content(origins, url, name)
            assert "HIDE" not in str(caught.value)
            with pytest.raises(Forbidden):
                await listed(origins, name)
    assert refused == ["wrong"] * 4, "nobody's credentials were refused where there are none"
    assert "HIDE" not in repr(origins.own_options.options("wrong"))
    await origins.close()


@on_loop
async def test_they_change_while_it_runs(s3_server: S3Server) -> None:
    url = s3_server.put(BUCKET, "g", b"content")
    origins = Origins({f"s3://{BUCKET}": s3_server.options})
    own = origins.own_options
    assert await content(origins, url, "set") == b"content", "what is configured counts while nothing is said"
    own.set("set", s3_server.options | {"secret_access_key": "wrong"})
    with pytest.raises(Forbidden):
        await content(origins, url, "set")
    own.set("set", s3_server.options)
    before = own.options("set")
    own.set("set", dict(s3_server.options))
    assert own.options("set") is before, "the same again opens nothing anew"
    assert await content(origins, url, "set") == b"content"
    own.close("set", NotFound("set was removed"))
    for _ in range(2):
        with pytest.raises(NotFound, match="set was removed"):
            await content(origins, url, "set")
    with pytest.raises(NotFound, match="set was removed"):
        await listed(origins, "set")
    own.forget("set")
    own.forget("set")
    assert await content(origins, url, "set") == b"content"
    assert await content(origins, url, "") == b"content"
    await origins.close()


@on_loop
async def test_the_nodes_own_credentials_are_not_shown_to_a_given_endpoint(s3_server: S3Server) -> None:
    url = s3_server.put(BUCKET, "h", b"content")
    origins = Origins({f"s3://{BUCKET}": s3_server.options})
    origins.own_options.set("set", {"endpoint": s3_server.endpoint, "allow_http": "true"})
    with pytest.raises(Forbidden):
        await content(origins, url, "set")
    origins.own_options.set("set", {"region": s3_server.region})
    assert await content(origins, url, "set") == b"content", "a region alone leads nowhere else"
    origins.own_options.set("set", {"endpoint": "http://127.0.0.1:1", "allow_http": "true"})
    with pytest.raises(OriginError, match=r"127\.0\.0\.1:1"):
        await content(origins, url, "set")
    await origins.close()


@on_loop
async def test_reads_wait_for_credentials_on_their_way(s3_server: S3Server) -> None:
    url = s3_server.put(BUCKET, "i", b"content")
    origins = Origins({})
    own = origins.own_options
    for name in ("set", "closed", "late"):
        own.wait_for(name)
    own.wait_for("set")
    reads = [asyncio.create_task(content(origins, url, name)) for name in ("set", "closed")]
    meta = ObjectMeta(url, 7, "")
    with pytest.raises(DeadlineExceeded):
        await origins.fetch(meta, 0, [memoryview(bytearray(7))], timeout_s=0.05, dataset="late")
    assert not any(task.done() for task in reads)
    own.set("set", s3_server.options)
    own.close("closed", Forbidden("no secret"))
    assert await reads[0] == b"content"
    with pytest.raises(Forbidden, match="no secret"):
        await reads[1]
    own.forget("late")
    own.wait_for("set")
    with pytest.raises(DeadlineExceeded):
        await origins.head(url, timeout_s=0.05, dataset="set")
    await origins.close()

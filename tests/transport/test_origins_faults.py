"""Origins over a web server that misbehaves: each fault ends in its own error, in time, and never in wrong bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shoal_core.errors import (
    DeadlineExceeded,
    Forbidden,
    NotFound,
    ObjectChanged,
    OriginError,
    ShoalError,
)
from shoal_transport.origins import ObjectMeta, Origins, stores
from shoal_transport.origins.own_options import OwnOptions
from tests.support.http_origin import Fault, HttpOrigin
from tests.transport.origin_calls import SECONDS, on_loop, read, read_all

CONTENT = bytes(range(256)) * 1000


async def opened(origin: HttpOrigin, path: str = "/f") -> tuple[Origins, ObjectMeta]:
    origins = Origins({}, retry_count_max=1)
    return origins, await origins.head(origin.put(path, CONTENT), timeout_s=SECONDS)


def http_origin_was_asked(origin: HttpOrigin) -> None:
    deadline = time.monotonic() + SECONDS
    while not origin.count("/f"):
        assert time.monotonic() < deadline


async def fails(origins: Origins, meta: ObjectMeta, error: type[ShoalError], words: str) -> None:
    """The read ends in this error, in one line that begins with the URL."""
    with pytest.raises(error, match=words) as caught:
        await origins.fetch(meta, 100, [memoryview(bytearray(1000))], timeout_s=SECONDS)
    assert str(caught.value).startswith(meta.url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, Forbidden, "401 Unauthorized"),
        (403, Forbidden, "403 Forbidden"),
        (404, NotFound, "no such object"),
        (412, ObjectChanged, "changed at the origin"),
        (416, OriginError, "416"),
        (500, OriginError, "500 Internal Server Error, after 1 retries"),
        (503, OriginError, "503 Service Unavailable, after 1 retries"),
    ],
)
@on_loop
async def test_each_status_has_its_error(
    http_origin: HttpOrigin, status: int, error: type[ShoalError], words: str
) -> None:
    origins, meta = await opened(http_origin)
    http_origin.fail("/f", Fault(status=status, methods=("GET", "HEAD")))
    await fails(origins, meta, error, words)
    with pytest.raises(error):
        await origins.head(meta.url, timeout_s=SECONDS)
    http_origin.heal("/f")
    assert await read(origins, meta, 100, 50) == [CONTENT[100:150]]


@on_loop
async def test_a_passing_fault_is_retried(http_origin: HttpOrigin) -> None:
    origins, meta = await opened(http_origin)
    for fault in (Fault(status=503, times=1), Fault(reset=True, times=1), Fault(body_bytes=300, times=1)):
        http_origin.reset_counts()
        http_origin.fail("/f", fault)
        assert await read(origins, meta, 100, 1000) == [CONTENT[100:1100]], fault
        assert http_origin.count("/f") == 2
    assert {seen.if_match for seen in http_origin.seen} == {meta.etag}


@on_loop
async def test_retries_are_bounded(http_origin: HttpOrigin) -> None:
    _, meta = await opened(http_origin)
    for retries in (0, 2):
        http_origin.reset_counts()
        http_origin.fail("/f", Fault(status=503))
        await fails(Origins({}, retry_count_max=retries), meta, OriginError, "503")
        assert http_origin.count("/f") == retries + 1


@on_loop
async def test_a_body_that_stays_short(http_origin: HttpOrigin) -> None:
    origins, meta = await opened(http_origin)
    http_origin.fail("/f", Fault(body_bytes=10))
    await fails(origins, meta, OriginError, "short read")


@on_loop
async def test_a_connection_that_is_reset(http_origin: HttpOrigin) -> None:
    origins, meta = await opened(http_origin)
    http_origin.fail("/f", Fault(reset=True))
    host = http_origin.base_url.removeprefix("http://")
    await fails(origins, meta, OriginError, f"{host}")
    http_origin.heal("/f")
    http_origin.fail("/f", Fault(reset=True, body_bytes=10))
    await fails(origins, meta, OriginError, f"{host}")


@on_loop
async def test_an_object_that_changes_between_ranges(http_origin: HttpOrigin) -> None:
    origins, meta = await opened(http_origin)
    http_origin.change_after("/f", 1, b"other" * 100_000)
    assert await read(origins, meta, 0, 100) == [CONTENT[:100]]
    await fails(origins, meta, ObjectChanged, "changed at the origin")


@on_loop
async def test_an_object_that_changes_while_its_body_is_retried(http_origin: HttpOrigin) -> None:
    """The rest of the body is asked for under the old etag, so two versions never mix."""
    origins, meta = await opened(http_origin)
    http_origin.fail("/f", Fault(body_bytes=10, times=1))
    http_origin.change_after("/f", 1, b"other" * 100_000)
    with pytest.raises((ObjectChanged, OriginError)):
        await read(origins, meta, 100, 1000)


@on_loop
async def test_a_late_answer_is_given_up_in_time_and_touches_nothing(http_origin: HttpOrigin) -> None:
    origins, meta = await opened(http_origin)
    gate = threading.Event()
    http_origin.fail("/f", Fault(gate=gate, times=2, methods=("GET", "HEAD")))
    buffer = bytearray(b"\xee" * 1000)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=f"{meta.url}: the origin did not answer within 0.2 s"):
        await origins.fetch(meta, 100, [memoryview(buffer)], timeout_s=0.2)
    with pytest.raises(DeadlineExceeded):
        await origins.head(meta.url, timeout_s=0.2)
    assert time.monotonic() - started < 5
    gate.set()
    assert await read(origins, meta, 100, 1000) == [CONTENT[100:1100]]
    assert buffer == b"\xee" * 1000


@on_loop
async def test_a_cancelled_read_touches_nothing(http_origin: HttpOrigin) -> None:
    origins, meta = await opened(http_origin)
    gate = threading.Event()
    http_origin.fail("/f", Fault(gate=gate, times=1))
    http_origin.reset_counts()
    buffer = bytearray(b"\xee" * 1000)
    task = asyncio.create_task(origins.fetch(meta, 100, [memoryview(buffer)], timeout_s=SECONDS))
    await asyncio.to_thread(http_origin_was_asked, http_origin)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await read(origins, meta, 100, 1000) == [CONTENT[100:1100]]
    assert buffer == b"\xee" * 1000


@pytest.mark.parametrize("path", ["/a b/é", "/100%", "/x%20y", "/q#1", "/a//b", "/dir/", "/[x]&y=1+2;3,4"])
@on_loop
async def test_web_paths_follow_the_rules_of_the_web(http_origin: HttpOrigin, path: str) -> None:
    url = http_origin.put(path, path.encode())
    assert await read_all(url) == path.encode()
    assert await read_all(url + "?version=1#part") == path.encode()


@on_loop
async def test_unquoted_web_paths_work_too(http_origin: HttpOrigin) -> None:
    http_origin.put("/a b/é", b"x")
    assert await read_all(f"{http_origin.base_url}/a b/é") == b"x"


@on_loop
async def test_a_signed_query_stays_out_of_error_texts(http_origin: HttpOrigin) -> None:
    url = http_origin.put("/f", b"x") + "?X-Amz-Signature=HIDE"
    host = http_origin.base_url.removeprefix("http://")
    for asked in (url, url.replace("http://", "http://user:HIDE@")):
        http_origin.fail("/f", Fault(status=503, methods=("HEAD",), times=2))
        with pytest.raises(OriginError) as caught:
            await Origins({}, retry_count_max=1).head(asked, timeout_s=SECONDS)
        assert "HIDE" not in str(caught.value)
        assert host in str(caught.value)


@on_loop
async def test_signed_urls_do_not_pile_up_connections(http_origin: HttpOrigin) -> None:
    url = http_origin.put("/f", b"x")
    opened_stores = stores.Stores({}, OwnOptions(), retry_count_max=1)
    for number in range(stores.STORES_MAX + 50):
        opened_stores.locate(f"{url}?signature={number}")
    assert len(opened_stores) == stores.STORES_MAX


@on_loop
async def test_a_web_server_without_listing_says_so(http_origin: HttpOrigin) -> None:
    http_origin.put("/dir/f", b"x")
    with pytest.raises(OriginError, match="no listing"):
        await anext(aiter(Origins({}).list(f"{http_origin.base_url}/dir/", timeout_s=SECONDS)))


class SimpleServer(ThreadingHTTPServer):
    daemon_threads = True
    etag: str | None = None
    date: str | None = None
    knows_ranges = False
    content = CONTENT


class _SimpleHandler(BaseHTTPRequestHandler):
    """Ignores If-Match but for weak etags, which never match; ranges, etag and date as the server says."""

    protocol_version = "HTTP/1.1"
    server: SimpleServer

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def log_message(self, *_: object) -> None: ...

    def _answer(self, *, send_body: bool) -> None:
        content, asked = self.server.content, self.headers.get("Range")
        if self.headers.get("If-Match", "").startswith("W/"):
            self.send_error(412)
            return
        start, stop = 0, len(content)
        if asked and self.server.knows_ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), int(last) + 1
        self.send_response(206 if asked and self.server.knows_ranges else 200)
        self.send_header("Content-Length", str(stop - start))
        if asked and self.server.knows_ranges:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        if self.server.date:
            self.send_header("Last-Modified", self.server.date)
        self.end_headers()
        if send_body:
            self.wfile.write(content[start:stop])


@pytest.fixture
def simple_server() -> Iterator[SimpleServer]:
    server = SimpleServer(("127.0.0.1", 0), _SimpleHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def simple_url(server: SimpleServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/f"


@on_loop
async def test_a_server_without_ranges_gives_whole_objects_only(simple_server: SimpleServer) -> None:
    origins = Origins({})
    meta = await origins.head(simple_url(simple_server), timeout_s=SECONDS)
    assert await read(origins, meta, 0, len(CONTENT)) == [CONTENT]
    await fails(origins, meta, OriginError, "ignores range requests")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": '"1"'}, {"etag": '"2"'}),
        ({"etag": 'W/"1"'}, {"etag": 'W/"2"'}),
        ({"etag": '"1"'}, {}),
        ({"date": "Mon, 23 Nov 2026 12:00:00 GMT"}, {"date": "Mon, 23 Nov 2026 12:00:01 GMT"}),
        ({}, {"content": CONTENT + b"x"}),
        ({"etag": '"1"'}, {"etag": '"1"', "content": CONTENT[:-1]}),
    ],
)
@on_loop
async def test_servers_that_ignore_if_match_are_compared_with(
    simple_server: SimpleServer, before: dict[str, str], after: dict[str, str]
) -> None:
    simple_server.knows_ranges = True
    for name, value in before.items():
        setattr(simple_server, name, value)
    origins = Origins({})
    meta = await origins.head(simple_url(simple_server), timeout_s=SECONDS)
    assert meta.etag == before.get("etag", "mtime:2026-11-23T12:00:00+00:00" if "date" in before else "")
    assert await read(origins, meta, 100, 50) == [CONTENT[100:150]]
    for name in before:
        setattr(simple_server, name, None)
    for name, value in after.items():
        setattr(simple_server, name, value)
    await fails(origins, meta, ObjectChanged, "changed at the origin")
    with pytest.raises(ObjectChanged):
        await read(origins, meta, 0, len(CONTENT))


def s3_on(base_url: str) -> Origins:
    """S3 at a server that checks no signature."""
    keys = {"access_key_id": "a", "secret_access_key": "s"}
    return Origins({"s3://bucket": {"endpoint": base_url, **keys}}, retry_count_max=1)


@pytest.mark.parametrize("key", ["a//b", "/a", "//", "a///b#c/d e", "%//é"])
@on_loop
async def test_s3_keys_with_slashes_in_a_row(http_origin: HttpOrigin, key: str) -> None:
    """Object stores have them, file systems (and so the S3 server of the other tests) have not."""
    http_origin.put(f"/bucket/{key}", key.encode())
    http_origin.put("/bucket/a/b", b"decoy")
    http_origin.put("/bucket/a", b"decoy")
    origins = s3_on(http_origin.base_url)
    if key.endswith("/"):
        with pytest.raises(NotFound, match="directory"):
            await origins.head(f"s3://bucket/{key}", timeout_s=SECONDS)
        return
    meta = await origins.head(f"s3://bucket/{key}", timeout_s=SECONDS)
    assert await read(origins, meta, 0, meta.size) == [key.encode()]


def listing(*keys_and_sizes: tuple[str, int]) -> bytes:
    rows = "".join(
        f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>2026-11-23T12:00:00.000Z</LastModified>"
        f"<ETag>&quot;{index}&quot;</ETag></Contents>"
        for index, (key, size) in enumerate(keys_and_sizes)
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()


@on_loop
async def test_directory_markers_are_not_listed(simple_server: SimpleServer) -> None:
    """Empty objects 'dir/' as consoles make them; an empty object beside others is one."""
    simple_server.content = listing(("dir/", 0), ("dir/empty", 0), ("dir/f", 5), ("dirx", 0), ("f", 7), ("f/below", 1))
    origins = s3_on(simple_url(simple_server).removesuffix("/f"))
    [chunk] = [chunk async for chunk in origins.list("s3://bucket", timeout_s=SECONDS)]
    assert [(meta.url.removeprefix("s3://bucket/"), meta.size, meta.etag) for meta in chunk] == [
        ("dir/empty", 0, '"1"'), ("dir/f", 5, '"2"'), ("dirx", 0, '"3"'), ("f", 7, '"4"'), ("f/below", 1, '"5"'),
    ]  # fmt: skip


@pytest.mark.parametrize("content", [listing(("a//b", 1)), b"no xml", b""])
@on_loop
async def test_a_listing_that_cannot_be_is_an_error(simple_server: SimpleServer, content: bytes) -> None:
    simple_server.content = content
    origins = s3_on(simple_url(simple_server).removesuffix("/f"))
    with pytest.raises(ShoalError, match="s3://bucket: "):
        await anext(aiter(origins.list("s3://bucket", timeout_s=SECONDS)))

"""Origins over local files, and everything that does not depend on a server: URLs, names, settings, fsspec."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from shoal_core.errors import (
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    NotFound,
    ObjectChanged,
    OriginError,
    ShoalError,
)
from shoal_transport.origins import ObjectMeta, Origins, file_systems
from shoal_transport.origins.interface import shown
from tests.transport.origin_calls import SECONDS, on_loop, read, read_all


@on_loop
async def test_scatters_a_range_over_consecutive_views(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "f").write_bytes(content)
    origins = Origins({})
    meta = await origins.head(f"file://{tmp_path}/f", timeout_s=SECONDS)
    assert meta.size == 300_000
    assert meta.etag
    assert b"".join(await read(origins, meta, 7, 100_000, 1, 0, 150_000)) == content[7:250_008]
    assert await read(origins, meta, 0, 300_000) == [content]
    assert await read(origins, meta, 300_000, 0) == [b""]


@on_loop
async def test_refuses_a_range_beyond_the_object(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    origins = Origins({})
    meta = await origins.head(f"file://{tmp_path}/f", timeout_s=SECONDS)
    with pytest.raises(BadRequest, match="bytes 3 to 6 of an object of 5 bytes"):
        await read(origins, meta, 3, 3)
    with pytest.raises(BadRequest):
        await read(origins, meta, -1, 3)


@on_loop
async def test_a_zero_byte_object_needs_no_request(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert await read_all(f"file://{tmp_path}/empty") == b""


NAMES = [
    "plain", "a b", " lead", "trail ", "é漢字🐟", "100%", "x%20y", "x%zz", "x%2Fy", "h#b", "#", "q?x=1&y", "st*r",
    "b\\s", "~[]{}|^`\"<>'", "a:b", "a=b+c", ".hidden", "...", "file#12", "tab\there", "new\nline", "n" * 255,
    "é" * 127,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@on_loop
async def test_local_names_are_taken_verbatim(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "decoy").write_bytes(b"decoy")
    assert await read_all(f"file://{tmp_path}/{name}") == name.encode()


@on_loop
async def test_slashes_in_a_row_and_long_local_paths(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 200] * 6)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"deep")
    assert len(str(deep)) > 1024
    assert await read_all(f"file://{deep}/f") == b"deep"
    assert await read_all(f"file://{tmp_path}//./{'/'.join(['d' * 200] * 6)}///f") == b"deep"


@pytest.mark.parametrize("tail", ["none", "", "dir", "dir/", "f/", "f/x", "n" * 256])
@on_loop
async def test_what_is_not_a_file_is_not_found(tmp_path: Path, tail: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(NotFound) as caught:
        await read_all(f"file://{tmp_path}/{tail}")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@on_loop
async def test_a_changed_file_is_told_from_the_opened_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a" * 100)
    origins = Origins({})
    meta = await origins.head(f"file://{path}", timeout_s=SECONDS)
    for changed in (b"b" * 100, b"short", b"c" * 1000):
        path.write_bytes(changed)
        os.utime(path, ns=(1, 1_000_000_000 * len(changed)))
        with pytest.raises(ObjectChanged, match=f"file://{path}"):
            await read(origins, meta, 10, 20)


@on_loop
async def test_lists_recursively_and_what_it_lists_can_be_read(tmp_path: Path) -> None:
    expected = {}
    for name in ("a", "sub/é b", "sub/deeper/c%20d", "subway", "q?x"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        expected[f"file://{path}"] = name.encode()
    origins = Origins({})
    listed = [meta async for chunk in origins.list(f"file://{tmp_path}", timeout_s=SECONDS) for meta in chunk]
    assert {meta.url for meta in listed} == set(expected)
    for meta in listed:
        assert await origins.head(meta.url, timeout_s=SECONDS) == meta
        assert await read(origins, meta, 0, meta.size) == [expected[meta.url]]
    below = [m.url async for chunk in origins.list(f"file://{tmp_path}/sub/", timeout_s=SECONDS) for m in chunk]
    assert sorted(below) == [f"file://{tmp_path}/sub/deeper/c%20d", f"file://{tmp_path}/sub/é b"]


@on_loop
async def test_a_long_listing_comes_in_chunks(tmp_path: Path) -> None:
    for number in range(2500):
        (tmp_path / f"{number:05}").touch()
    sizes = [len(chunk) async for chunk in Origins({}).list(f"file://{tmp_path}", timeout_s=SECONDS)]
    assert sum(sizes) == 2500
    assert max(sizes) <= 1000


@on_loop
async def test_listing_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for tail in ("none", "f"):
        with pytest.raises(NotFound):
            await anext(aiter(Origins({}).list(f"file://{tmp_path}/{tail}", timeout_s=SECONDS)))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "not a URL"),
        ("/a/path", "not a URL"),
        ("s3:/bucket/key", "not a URL"),
        ("s3:///key", "no bucket"),
        ("http:///key", "no host"),
        ("file://host/path", "three slashes"),
        ("file:///a/../b", r"'\.\.'"),
        ("gs://bucket/a//b", "two slashes"),
        ("shoal://name/path", "cannot be a Shoal URL"),
        ("gopher://host/x", "gopher://: unknown scheme; known: s3, gs, az, http, https, file"),
    ],
)
@on_loop
async def test_urls_that_cannot_be(url: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        await Origins({}).head(url, timeout_s=SECONDS)


_KEYS = {"access_key_id": "HIDE", "secret_access_key": "HIDE"}


@pytest.mark.parametrize("options", [{"nonsense": "1"}, {"read_timeout": "soon"}, {"skip_signature": "perhaps"}])
@on_loop
async def test_an_impossible_setting_is_named(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        await Origins({"s3://bucket": options | _KEYS}).head("s3://bucket/x", timeout_s=SECONDS)
    assert "s3://bucket" in str(caught.value)
    assert next(iter(options.values())) in str(caught.value) or "nonsense" in str(caught.value)
    assert "HIDE" not in str(caught.value)


@on_loop
async def test_another_scheme_goes_through_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/shoal-test/a b": b"0123456789", "/shoal-test/sub/c": b"c"})
    origins = Origins({})
    meta = await origins.head("memory://shoal-test/a b", timeout_s=SECONDS)
    assert await read(origins, meta, 2, 3, 4) == [b"234", b"5678"]
    listed = [m.url async for chunk in origins.list("memory://shoal-test", timeout_s=SECONDS) for m in chunk]
    assert listed == ["memory:///shoal-test/a b", "memory:///shoal-test/sub/c"]
    with pytest.raises(NotFound):
        await origins.head("memory://shoal-test/none", timeout_s=SECONDS)
    with pytest.raises(NotFound):
        await origins.head("memory://shoal-test/sub", timeout_s=SECONDS)
    memory.pipe("/shoal-test/a b", b"other bytes")
    with pytest.raises(ObjectChanged):
        await read(origins, meta, 0, 5)


@pytest.mark.parametrize(("extra", "word"), [(-1, "fewer"), (1, "more")])
@on_loop
async def test_another_length_than_asked_for_is_an_error(extra: int, word: str) -> None:
    memory_file_system = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem

    class InexactFileSystem(memory_file_system):  # type: ignore[misc, valid-type]
        protocol = f"inexact{word}"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.rpartition("://")[2].lstrip("/")

        def cat_file(self, path: str, start: int, end: int) -> bytes:
            return super().cat_file(path, start=start, end=end + extra)

    fsspec = pytest.importorskip("fsspec")
    fsspec.register_implementation(f"inexact{word}", InexactFileSystem, clobber=True)
    fsspec.filesystem("memory").pipe("/shoal-inexact/f", bytes(100))
    origins = Origins({})
    meta = await origins.head(f"inexact{word}://shoal-inexact/f", timeout_s=SECONDS)
    with pytest.raises(OriginError, match=f"{word} than the 20 asked for"):
        await read(origins, meta, 10, 15, 5)


@on_loop
async def test_a_file_system_that_hangs_costs_its_callers_their_time_only() -> None:
    memory_file_system = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem
    go_on, running = threading.Event(), []

    class HangingFileSystem(memory_file_system):  # type: ignore[misc, valid-type]
        protocol = "hanging"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.rpartition("://")[2].lstrip("/")

        def info(self, path: str, **options: object) -> dict[str, object]:
            running.append(path)
            assert go_on.wait(SECONDS)
            return super().info(path, **options)

    fsspec = pytest.importorskip("fsspec")
    fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)
    fsspec.filesystem("memory").pipe("/shoal-hanging/f", b"x")
    origins = Origins({})
    heads = (origins.head("hanging://shoal-hanging/f", timeout_s=0.2) for _ in range(50))
    ends = await asyncio.gather(*heads, return_exceptions=True)
    assert {type(end) for end in ends} == {DeadlineExceeded}
    assert len(running) == file_systems.THREADS_MAX
    go_on.set()
    assert (await origins.head("hanging://shoal-hanging/f", timeout_s=SECONDS)).size == 1


@on_loop
async def test_calls_run_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 1000)
    origins = Origins({})
    meta = await origins.head(f"file://{tmp_path}/f", timeout_s=SECONDS)
    got = await asyncio.gather(*(read(origins, meta, 256 * n, 256) for n in range(200)))
    assert got == [[bytes(range(256))]] * 200


def test_what_is_shown_of_a_url_holds_no_secret() -> None:
    assert shown("https://user:pass@host/a?X-Amz-Signature=1#f") == "https://host/a?..."
    assert shown("s3://bucket/what?really#yes@home") == "s3://bucket/what?really#yes@home"


@on_loop
async def test_every_error_is_ours_and_short(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:1/x", "s3://bucket/x", "http://no-such-host.invalid/x", f"file://{tmp_path}/none"):
        settings = {"s3://bucket": {"endpoint": "http://127.0.0.1:1", "skip_signature": "true"}}
        with pytest.raises(ShoalError) as caught:
            await Origins(settings, retry_count_max=1).head(url, timeout_s=SECONDS)
        assert str(caught.value).startswith(url)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


@on_loop
async def test_no_origin_has_what_was_derived() -> None:
    origins = Origins({})
    with pytest.raises(NotFound, match=r"derived:index/1: was made of other objects"):
        await origins.head("derived:index/1", timeout_s=SECONDS)
    with pytest.raises(NotFound):
        await read(origins, ObjectMeta("derived:index/1", 5, ""), 0, 5)

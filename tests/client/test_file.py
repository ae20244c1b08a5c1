"""The file object against Python's own over the same bytes, through a real node."""

import io
import random
from pathlib import Path

import pytest

import shoal
from shoal import errors, file
from tests.support import waiting

CONTENT = random.Random(3).randbytes(3_000_000)


@pytest.fixture
def url(tmp_path: Path) -> str:
    path = tmp_path / "content.bin"
    path.write_bytes(CONTENT)
    return f"file://{path}"


def test_reads_like_a_file(client: shoal.Client, url: str) -> None:
    """Any mix of seeks and reads gives what a file over the same bytes gives."""
    rng = random.Random(4)
    expected = io.BytesIO(CONTENT)
    with file.open_binary(client, url) as opened:
        assert opened.size == len(CONTENT)
        for _ in range(200):
            whence = rng.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
            offset = -rng.randrange(1000) if whence == io.SEEK_END else rng.randrange(len(CONTENT) // 2)
            length = rng.choice([0, 1, 10, 5000, 400_000])
            assert opened.seek(offset, whence) == expected.seek(offset, whence)
            assert opened.read(length) == expected.read(length)
            assert opened.tell() == expected.tell()


def test_reads_to_the_end_in_one_read_and_then_nothing(client: shoal.Client, url: str) -> None:
    with client.open(url) as opened:
        opened.seek(1_000)
        before = client.stats().reads
        assert opened.read() == CONTENT[1_000:]
        assert client.stats().reads == before + 1
        assert opened.read() == b""
        assert opened.read(10) == b""
        opened.seek(10, io.SEEK_END)
        assert opened.read(1) == b""


def test_reads_into_the_callers_memory(client: shoal.Client, url: str) -> None:
    buffer = bytearray(b"x" * 1000)
    with file.ShoalFile(client, url) as raw:
        raw.seek(len(CONTENT) - 600)
        assert raw.readinto(memoryview(buffer)[100:]) == 600
        assert raw.readinto(buffer) == 0
    assert buffer == b"x" * 100 + CONTENT[-600:] + b"x" * 300


def test_gives_lines_and_text(client: shoal.Client, tmp_path: Path) -> None:
    path = tmp_path / "text – ä.txt"
    path.write_text("eins\nzwei äöü\n\nend", encoding="utf-8")
    with io.TextIOWrapper(client.open(f"file://{path}"), encoding="utf-8") as text:
        assert list(text) == ["eins\n", "zwei äöü\n", "\n", "end"]


def test_of_no_bytes(client: shoal.Client, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with client.open(f"file://{tmp_path}/empty") as opened:
        assert (opened.size, opened.read(), opened.readline()) == (0, b"", b"")


def test_says_what_it_is(client: shoal.Client, url: str) -> None:
    with client.open(url) as opened:
        assert (opened.name, opened.mode, opened.closed) == (url, "rb", False)
        assert opened.readable()
        assert opened.seekable()
        assert not opened.writable()
        assert url in repr(opened.raw)
    assert opened.closed


def test_closed_is_an_error(client: shoal.Client, url: str) -> None:
    raw = file.ShoalFile(client, url)
    raw.close()
    raw.close()
    for use in (raw.tell, raw.readall, raw.readable, lambda: raw.seek(0), lambda: raw.readinto(bytearray(1))):
        with pytest.raises(errors.Closed, match=url):
            use()
    opened = client.open(url)
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        opened.read(1)


def test_bad_seeks_name_the_file(client: shoal.Client, url: str) -> None:
    with file.ShoalFile(client, url) as raw:
        with pytest.raises(errors.BadRequest, match=f"{url}: seek to -1"):
            raw.seek(-1)
        with pytest.raises(errors.BadRequest, match=f"{url}.*not 7"):
            raw.seek(0, 7)
        assert raw.tell() == 0


def blocks_cached(client: shoal.Client, url: str) -> int:
    return client.inspect([url])[0].block_count


def test_a_sequential_reader_has_the_node_fill_ahead(client: shoal.Client, url: str) -> None:
    block_bytes = client.info(url).block_size_bytes
    with client.open(url, buffer_bytes=1024) as opened:
        opened.read(block_bytes)
        assert blocks_cached(client, url) == 1  # somebody who looks at the beginning only
        opened.read(1024)
        waiting.until(lambda: blocks_cached(client, url) == 2 + file.AHEAD_BLOCKS)
        opened.read(file.AHEAD_BLOCKS * block_bytes)
        waiting.until(lambda: blocks_cached(client, url) > 2 + file.AHEAD_BLOCKS)


def test_random_reads_fill_nothing_else(client: shoal.Client, url: str) -> None:
    block_bytes = client.info(url).block_size_bytes
    with client.open(url, buffer_bytes=1024) as opened:
        for block in (30, 3, 17, 5):
            opened.seek(block * block_bytes)
            opened.read(1000)
    assert blocks_cached(client, url) == 4


def test_stays_with_the_version_it_opened(client: shoal.Client, url: str) -> None:
    """Bytes of two versions never meet in one file: what is not cached of the old one is an error."""
    with client.open(url, buffer_bytes=1000) as opened:
        assert opened.read(10) == CONTENT[:10]
        Path(url.removeprefix("file://")).write_bytes(b"another" * 1_000_000)
        opened.seek(2_000_000)
        with pytest.raises(errors.ObjectChanged):
            opened.read(10)


def test_a_missing_object_is_an_error_at_opening(client: shoal.Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        client.open(f"file://{tmp_path}/missing")


@pytest.mark.parametrize("mode", ["wb", "r+b", "ab", "xb", "r"])
def test_only_reads(client: shoal.Client, url: str, mode: str) -> None:
    with pytest.raises(errors.BadRequest, match=f"{url}.*write to the origin"):
        file.open_binary(client, url, mode)

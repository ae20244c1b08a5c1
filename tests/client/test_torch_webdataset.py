"""WebDataset shards: every sample, found at random, of archives as tar programs really write them."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import shoal  # noqa: E402
from shoal import errors  # noqa: E402
from shoal.torch import DataLoader, Dataset  # noqa: E402
from shoal.torch.formats import names, shard_index, tar  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.http_origin import HttpOrigin  # noqa: E402
from tests.support.running_node import MakeProcess  # noqa: E402

BLOCK = 64 << 10
Sample = dict[str, bytes]


def content(name: str, size: int | None = None) -> bytes:
    chance = random.Random(name)
    return chance.randbytes(chance.randrange(30_000) if size is None else size)


def write(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples_of(path: Path) -> list[dict[str, bytes | str]]:
    """What a reader that goes through the archive finds, by WebDataset's convention."""
    found: list[dict[str, bytes | str]] = []
    with tarfile.open(path) as archive:
        for member in archive:
            name = shard_index.split(member.name) if member.isfile() else None
            if name is None:
                continue
            if not found or found[-1]["__key__"] != name[0]:
                found.append({"__key__": name[0], "__url__": f"file://{path}"})
            file = archive.extractfile(member)
            assert file is not None
            found[-1][name[1]] = file.read()
    return found


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Three, with 25 samples of three members each."""
    paths: list[Path] = []
    for shard in range(3):
        keys = [f"{shard}/{number:03}" for number in range(25)]
        files = {f"{key}.{kind}": content(f"{key}.{kind}") for key in keys for kind in ("jpg", "seg.png", "cls")}
        paths.append(write(tmp_path / "shards" / f"shard-{shard:02}.tar", files))
    return paths


@pytest.fixture
def url(shards: list[Path]) -> str:
    return f"file://{shards[0].parent}"


def label(sample: Sample) -> int:
    return len(sample["cls"])


def test_samples_are_those_of_the_archives(client: shoal.Client, url: str, shards: list[Path]) -> None:
    dataset = Dataset(url, format="webdataset", client=client)
    expected = [sample for path in shards for sample in samples_of(path)]
    assert len(dataset) == len(expected) == 75
    assert dataset.__getitems__(range(75)) == expected
    order = random.Random(1).sample(range(75), 75)
    assert dataset.__getitems__(order) == [expected[number] for number in order]
    assert dataset[-1] == expected[-1]
    assert list(dataset[0]) == ["__key__", "__url__", "jpg", "seg.png", "cls"]
    assert "75 samples in 3 shards" in repr(dataset)


@pytest.mark.parametrize("chosen", ["shard-{01..02}.tar", ["shard-02.tar", "shard-01.tar"]])
def test_shards_may_be_named(client: shoal.Client, url: str, shards: list[Path], chosen: str | list[str]) -> None:
    dataset = Dataset(url, format="webdataset", names=chosen, client=client)
    assert dataset.__getitems__(range(50)) == samples_of(shards[1]) + samples_of(shards[2])
    assert dataset.digest != Dataset(url, format="webdataset", client=client).digest


def test_shards_of_a_web_server_are_named_and_read_once(
    client: shoal.Client, shards: list[Path], http_origin: HttpOrigin
) -> None:
    for path in shards:
        url = http_origin.put(f"/shards/{path.name}", path.read_bytes())
    options: dict[str, Any] = {"format": "webdataset", "names": "shard-{00..02}.tar", "client": client}
    first = Dataset(url.rpartition("/")[0], **options)
    reads = [http_origin.count(f"/shards/{path.name}") for path in shards]
    assert all(reads)
    client.evict(url)
    second = Dataset(url.rpartition("/")[0], **options)
    assert [http_origin.count(f"/shards/{path.name}") for path in shards] == reads, "the index was kept"
    assert second.digest == first.digest
    assert second[60]["jpg"] == content("2/010.jpg")


LONG = "deep/" * 60 + "file"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_odd_names(client: shoal.Client, tmp_path: Path, form: int) -> None:
    """Long ones, dots in folders, characters beyond ASCII, bytes that are no text, and what is no sample at all."""
    files = {
        "./a.jpg": b"1", "./a.CLS": b"2", "folder.v2/a.jpg": b"3", "folder.v2/a.json.gz": b"4",
        f"{LONG}.jpg": b"5", f"{LONG}.txt": b"6", "x" * 99 + ".jpg": b"7", "x" * 100 + ".jpg": b"",
        "ähre 🐟/ü.jpg": b"8" * 513, "bad\udcff.jpg": b"9", "again.jpg": b"10", "other.jpg": b"11", "again.txt": b"12",
        "no-extension": b"-", ".hidden": b"-", "folder/.hidden.jpg": b"-", "__meta__.json__": b"-", "last.": b"13",
    }  # fmt: skip
    path = write(tmp_path / "odd" / "a.tar", files, form)
    dataset = Dataset(f"file://{path.parent}", format="webdataset", client=client)
    expected = samples_of(path)
    assert dataset.__getitems__(range(len(dataset))) == expected
    assert [sample["__key__"] for sample in expected[2:4]] == [LONG, "x" * 99]
    assert sum(sample["__key__"] == "again" for sample in expected) == 2, "runs of members, not all of one name"
    assert "-" not in {value for sample in expected for value in sample.values()}


def test_what_is_no_file_is_passed_over(client: shoal.Client, tmp_path: Path) -> None:
    path = tmp_path / "mixed" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, target in (
            ("folder.d", tarfile.DIRTYPE, ""), ("link.jpg", tarfile.SYMTYPE, "a" * 200),
            ("hard.jpg", tarfile.LNKTYPE, "a.jpg"), ("pipe.jpg", tarfile.FIFOTYPE, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    dataset = Dataset(f"file://{path.parent}", format="webdataset", client=client)
    assert [(sample["__key__"], sample["jpg"]) for sample in dataset.__getitems__(range(len(dataset)))] == [
        ("a", b"abc")
    ]


# Archives that cannot be read.


def sparse_pax() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("GNUSparseFile.0/a.jpg")
        info.size, info.pax_headers = 512, {"GNU.sparse.major": "1", "GNU.sparse.name": "a.jpg"}
        archive.addfile(info, io.BytesIO(bytes(512)))
    return made.getvalue()


def sparse_gnu() -> bytes:
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: gzip.compress(os.urandom(1000)), "compressed by gzip.*unpack it"),
        (lambda: os.urandom(4096), "offset 0: damaged, or not a tar file"),
        (sparse_pax, "sparse"),
        (sparse_gnu, "sparse"),
        (lambda: b"short", "cut off in the header at offset 0 of 5"),
    ],
)
def test_what_cannot_be_read_is_named(
    client: shoal.Client, tmp_path: Path, make: Callable[[], bytes], says: str
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "b.tar").write_bytes(make())
    with pytest.raises(errors.ShoalError, match=rf"bad/b\.tar: .*{says}"):
        Dataset(f"file://{tmp_path}/bad", format="webdataset", client=client)


def test_compressed_shards_are_refused_not_overlooked(client: shoal.Client, url: str, shards: list[Path]) -> None:
    (shards[0].parent / "more.tar.gz").write_bytes(gzip.compress(shards[0].read_bytes()))
    with pytest.raises(errors.BadRequest, match=r"more\.tar\.gz: is compressed by gzip"):
        Dataset(url, format="webdataset", client=client)


def test_two_members_of_one_name_are_an_error(client: shoal.Client, tmp_path: Path) -> None:
    write(tmp_path / "twice" / "a.tar", {"a.jpg": b"1", "a.JPG": b"2"})
    with pytest.raises(errors.OriginError, match=r"a\.tar: 'a\.JPG' at offset \d+ is the second"):
        Dataset(f"file://{tmp_path}/twice", format="webdataset", client=client)


def test_shards_without_samples_are_an_error(client: shoal.Client, tmp_path: Path) -> None:
    write(tmp_path / "none" / "a.tar", {"readme": b"1"})
    with pytest.raises(errors.NotFound, match="1 shards without a single sample"):
        Dataset(f"file://{tmp_path}/none", format="webdataset", client=client)


# The index.

LISTING = 2
"""Requests: a page, and that there is no other."""


def test_the_index_is_built_once_and_survives_kill_9(
    node_process: MakeProcess, url: str, shards: list[Path], tmp_path: Path
) -> None:
    """The second time nothing of the shards is read: their bytes are gone, and only their names are still there."""
    node = node_process({"nvme": [{"directory": str(tmp_path / "nvme"), "budget_bytes": "64MiB"}]})
    with shoal.connect(node.address) as client:
        first = Dataset(url, format="webdataset", client=client)
        client.evict(url + "/")
    requests = node.status()["origin_requests"]
    with shoal.connect(node.address) as client:
        second = Dataset(url, format="webdataset", client=client)
    status = node.status()
    assert status["origin_requests"] == requests + LISTING
    assert status["fills"]["derived"]["ok"] == 6, "head and body, once for each shard"
    waiting.until(lambda: (now := node.status())["disk_queue"] == 0 and now["tiers"]["disk"]["blocks"] == 6)
    node.kill()
    node.start()
    with shoal.connect(node.address) as client:
        third = Dataset(url, format="webdataset", client=client)
        assert node.status()["origin_requests"] == LISTING
        assert len(first) == len(second) == len(third) == 75
        assert third.__getitems__(range(25)) == samples_of(shards[0])
    assert first.digest == second.digest == third.digest


def test_a_changed_shard_has_another_index(client: shoal.Client, url: str, shards: list[Path]) -> None:
    before = Dataset(url, format="webdataset", client=client)
    write(shards[1], {"a.jpg": b"new"})
    after = Dataset(url, format="webdataset", client=client)
    assert (len(before), len(after)) == (75, 51)
    assert before.digest != after.digest
    assert before[30]["__key__"] == "1/005", "what the cache holds of the version before is still good"
    assert after[25]["jpg"] == b"new"


def test_a_member_costs_18_bytes_and_a_sample_its_key_and_12() -> None:
    count = 10_000
    text_bytes = sum(len(f"folder/{number:09}") for number in range(count))
    index = shard_index.build(
        (tar.Member(f"folder/{number:09}.{kind}", number, 1) for number in range(count) for kind in ("jpg", "cls")),
        "url",
    )
    assert len(index.data) < text_bytes + (2 * 18 + 12) * count + 100
    tracemalloc.start()
    try:
        copy = pickle.loads(pickle.dumps(index))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < len(index.data) + 5000
    assert copy.key(1234) == "folder/000001234"
    assert list(copy.parts(1234)) == [("jpg", 1234, 1), ("cls", 1234, 1)]


# What a loader asks.


def test_places_and_shares_agree_with_the_archives(client: shoal.Client, url: str, shards: list[Path]) -> None:
    dataset = Dataset(url, format="webdataset", client=client)
    places = dataset.places(range(75))
    for number, place in enumerate(places):
        ((info, first, count),) = place
        path = shards[number // 25]
        assert info.url == f"file://{path}"
        with tarfile.open(path) as archive:
            inside = archive.getmembers()[number % 25 * 3 : number % 25 * 3 + 3]
        assert first == inside[0].offset_data // BLOCK
        assert first + count - 1 == (inside[2].offset_data + inside[2].size - 1) // BLOCK
    firsts = [(place[0][0].url, place[0][1]) for place in places]
    for number in range(75):
        assert list(dataset.shares(number)) == [n for n in range(75) if firsts[n] == firsts[number]]
    blocks = sum(-(-path.stat().st_size // BLOCK) for path in shards)
    assert dataset.shuffle_block == max(1, 75 // blocks)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same(client: shoal.Client, url: str, context: str) -> None:
    dataset = Dataset(url, client=client, format="webdataset", transform=label)
    loader = DataLoader(dataset, batch_size=10, num_workers=1 + (context == "fork"), multiprocessing_context=context)
    assert torch.cat(list(loader)).tolist() == [dataset[number] for number in range(75)]


def test_an_error_of_the_transform_names_the_sample(client: shoal.Client, url: str) -> None:
    def picky(sample: Sample) -> None:
        raise ValueError("not to my taste")

    dataset = Dataset(url, format="webdataset", transform=picky, client=client)
    with pytest.raises(ValueError, match="not to my taste") as raised:
        dataset[26]
    assert raised.value.__notes__ == [f"in the transform of {url}/shard-01.tar: 1/001"]
    with pytest.raises(AttributeError, match="format 'webdataset' has no classes"):
        _ = dataset.classes


# Patterns of names.


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a,}x", ["ax", "x"]),
    ],
)
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert list(names.expanded(pattern)) == expected


@pytest.mark.parametrize("pattern", ["{a", "a}", "{{a,b},c}", "{a}", "{5..3}", "{0..99999999}", "{a..c}"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(errors.BadRequest, match="names: "):
        list(names.expanded(pattern))

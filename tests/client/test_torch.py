"""The data set and the loader over real files, in this process and in forked and spawned workers."""

import pickle
import random
import tracemalloc
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import shoal  # noqa: E402
from shoal import errors  # noqa: E402
from shoal.torch import DataLoader, Dataset  # noqa: E402
from shoal.torch.file_table import NO_LABEL, File, FileTable  # noqa: E402


def content(name: str) -> bytes:
    return random.Random(name).randbytes(1 + len(name) * 100)


NAMES = sorted(f"{folder}/{number:02}.bin" for folder in ("cat", "dog", "dog-old", "ähre") for number in range(10))


@pytest.fixture
def url(tmp_path: Path) -> str:
    for name in NAMES:
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return f"file://{tmp_path}/files"


def first_bytes(data: bytes) -> "torch.Tensor":
    """At the top of the module, where spawned workers find it."""
    return torch.frombuffer(bytearray(data[:8]), dtype=torch.uint8)


def picky(data: bytes) -> bytes:
    raise ValueError("not to my taste")


# The table.


def test_the_same_files_have_the_same_numbers_however_they_were_listed() -> None:
    files = [File(name, index, f"etag {name}", bytes([index]) * 16) for index, name in enumerate(NAMES)]
    for listed in (files, random.Random(1).sample(files, len(files))):
        table = FileTable(listed)
        assert [table[number] for number in range(len(table))] == sorted(files, key=lambda file: file.name.encode())
        for number in range(len(table)):
            assert table.classes[table.labels[number]] == table.name(number).split("/")[0]


def test_classes_stand_in_the_order_of_their_names() -> None:
    # The slash sorts after the hyphen: 'dog-old/1' comes before 'dog/1', but 'dog' before 'dog-old'.
    table = FileTable(map(File, ["dog-old/1", "dog/1", "readme"]))
    assert table.classes == ("dog", "dog-old")
    assert list(table.labels) == [1, 0, NO_LABEL]


def test_a_file_costs_its_texts_and_44_bytes() -> None:
    count = 30_000
    text_bytes = sum(len(f"class-{n % 100:03}/file-{n:09}.jpg") for n in range(count)) + 32 * count
    tracemalloc.start()
    try:
        table = FileTable(File(f"class-{n % 100:03}/file-{n:09}.jpg", n, f"{n:032x}") for n in range(count))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < (text_bytes + 44 * count) * 1.15
    assert len(pickle.dumps(table)) < text_bytes + 44 * count + 10_000
    copy = pickle.loads(pickle.dumps(table))
    assert copy[12_345] == table[12_345]


# The data set.


def test_samples_are_the_files(client: shoal.Client, url: str) -> None:
    dataset = Dataset(url, client=client)
    assert len(dataset) == len(NAMES)
    assert dataset.classes == ("cat", "dog", "dog-old", "ähre")
    for number in range(len(dataset)):
        sample = dataset[number]
        assert sample["data"] == content(sample["path"])
        assert dataset.classes[sample["label"]] == sample["path"].split("/")[0]
    assert sorted(dataset[n]["path"] for n in range(len(dataset))) == NAMES
    assert dataset[-1] == dataset[len(NAMES) - 1]


def test_a_batch_keeps_its_order(client: shoal.Client, url: str) -> None:
    dataset = Dataset(url, client=client, transform=len)
    numbers = [7, 0, -1, 7, 20]
    assert dataset.__getitems__(numbers) == [dataset[number] for number in numbers]
    assert dataset.__getitems__([]) == []


@pytest.mark.parametrize("number", [len(NAMES), -len(NAMES) - 1])
def test_a_number_out_of_range_is_an_index_error(client: shoal.Client, url: str, number: int) -> None:
    with pytest.raises(IndexError, match="of 40"):
        Dataset(url, client=client)[number]


def test_names_replace_the_listing(client: shoal.Client, url: str) -> None:
    dataset = Dataset(url, names=["dog/03.bin", "cat/01.bin"], client=client)
    assert [sample["path"] for sample in dataset.__getitems__([0, 1])] == ["cat/01.bin", "dog/03.bin"]
    assert dataset[1]["data"] == content("dog/03.bin")


def test_suffixes_choose_and_nothing_is_an_error(client: shoal.Client, url: str, tmp_path: Path) -> None:
    (tmp_path / "files" / "cat" / "picture.JPG").write_bytes(b"jpg")
    assert [sample["path"] for sample in [Dataset(url, suffixes=[".jpg"], client=client)[0]]] == ["cat/picture.JPG"]
    with pytest.raises(errors.NotFound, match=r"no file here ends in \.png or \.gif"):
        Dataset(url, suffixes=[".png", ".GIF"], client=client)


def test_an_error_of_the_transform_names_the_file(client: shoal.Client, url: str) -> None:
    with pytest.raises(ValueError, match="not to my taste") as raised:
        Dataset(url, transform=picky, client=client)[3]
    assert raised.value.__notes__ == [f"in the transform of {url}/cat/03.bin"]


def test_samples_are_of_the_versions_that_were_listed(client: shoal.Client, url: str, tmp_path: Path) -> None:
    """What the cache holds of them is still good; what it does not hold is an error, and not another sample."""
    dataset = Dataset(url, client=client)
    assert dataset[1]["data"] == content("cat/01.bin")
    for name in ("cat/01.bin", "cat/02.bin"):
        (tmp_path / "files" / name).write_bytes(b"another version")
    assert dataset[1]["data"] == content("cat/01.bin")
    with pytest.raises(errors.ObjectChanged, match=r"cat/02\.bin"):
        dataset[2]
    assert Dataset(url, client=client)[2]["data"] == b"another version"


def test_a_file_that_vanished_is_named(client: shoal.Client, url: str, tmp_path: Path) -> None:
    dataset = Dataset(url, client=client)
    (tmp_path / "files" / "cat" / "03.bin").unlink()
    with pytest.raises(errors.ShoalError, match=r"cat/03\.bin"):
        dataset.__getitems__([2, 3, 4])


# What a loader asks of a data set.


def test_the_digest_names_names_sizes_and_versions(client: shoal.Client, url: str, tmp_path: Path) -> None:
    dataset = Dataset(url, client=client)
    digests = {dataset.digest, Dataset(url, suffixes=["3.bin"], client=client).digest}
    assert pickle.loads(pickle.dumps(dataset)).digest == Dataset(url, transform=len, client=client).digest
    assert Dataset(url, client=client).digest == dataset.digest
    (tmp_path / "files" / "cat" / "03.bin").write_bytes(b"another version")
    digests.add(Dataset(url, client=client).digest)
    (tmp_path / "files" / "cat" / "03.bin").rename(tmp_path / "files" / "cat" / "03.bim")
    digests.add(Dataset(url, client=client).digest)
    assert len(digests) == 4
    assert all(len(bytes.fromhex(digest)) == 16 for digest in digests)


@pytest.mark.parametrize("listed", [True, False])
def test_places_are_the_blocks_of_the_files(client: shoal.Client, url: str, tmp_path: Path, listed: bool) -> None:
    sizes = {"large": (64 << 10) * 2 + 1, "full": 64 << 10, "empty": 0}
    for name, size in sizes.items():
        (tmp_path / "files" / name).write_bytes(bytes(size))
    dataset = Dataset(url, names=None if listed else list(sizes), client=client)
    numbers = {dataset.path(number): number for number in range(len(dataset))}
    (large,), (full,), nothing = dataset.places([numbers["large"], numbers["full"], numbers["empty"]])
    assert (large[0].url, *large[1:]) == (f"{url}/large", 0, 3)
    assert (full[0].size, *full[1:]) == (64 << 10, 0, 1)
    assert nothing == []
    assert dataset.shares(-1) == range(len(dataset) - 1, len(dataset))
    assert dataset.shuffle_block == 1


# The loader.


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
def test_every_sample_once_per_epoch(client: shoal.Client, url: str, workers: int, context: str | None) -> None:
    dataset = Dataset(url, transform=first_bytes, client=client)
    loader = DataLoader(
        dataset, batch_size=12, shuffle=True, num_workers=workers, multiprocessing_context=context,
        persistent_workers=workers > 0,
    )  # fmt: skip
    for _ in range(2):
        seen: list[str] = []
        for batch in loader:
            assert isinstance(batch["label"], torch.Tensor)
            for data, label, path in zip(batch["data"], batch["label"], batch["path"], strict=True):
                assert bytes(data.tolist()) == content(path)[:8]
                assert dataset.classes[label] == path.split("/")[0]
                seen.append(path)
        assert sorted(seen) == NAMES
        stats = loader.stats()
        assert (stats.batch_count, stats.sample_count) == (4, 40)
        assert 0 < stats.wait_s <= stats.elapsed_s
        assert stats.samples_per_s == pytest.approx(40 / stats.elapsed_s)


def test_without_a_client_each_process_connects(config_for_connect: Path, url: str) -> None:
    loader = DataLoader(
        Dataset(url, transform=first_bytes), batch_size=40, num_workers=1, multiprocessing_context="fork"
    )
    (batch,) = loader
    assert [bytes(data.tolist()) for data in batch["data"]] == [content(path)[:8] for path in batch["path"]]


def test_the_account_follows_the_epoch(client: shoal.Client, url: str) -> None:
    loader = DataLoader(Dataset(url, transform=len, client=client), batch_size=16)
    assert loader.stats().batch_count == 0
    assert loader.stats().samples_per_s is None
    batches = iter(loader)
    next(batches)
    assert (loader.stats().batch_count, loader.stats().sample_count) == (1, 16)
    list(batches)
    assert (loader.stats().batch_count, loader.stats().sample_count) == (3, 40)
    iter(loader)
    assert loader.stats().batch_count == 0


def test_samples_are_counted(client: shoal.Client, url: str) -> None:
    dataset = Dataset(url, transform=len, client=client)

    def counted(**options: object) -> tuple[int, int | None]:
        loader = DataLoader(dataset, **options)  # type: ignore[arg-type]
        assert len(list(loader)) == len(loader)
        return loader.stats().batch_count, loader.stats().sample_count

    assert counted(batch_size=16, drop_last=True) == (2, 32)
    assert counted(batch_size=None) == (40, 40)
    assert counted(batch_size=3, sampler=range(7)) == (3, 7)
    assert counted(batch_sampler=[[1, 2], [3]]) == (2, 3)


def test_bytes_collate_as_the_user_says(client: shoal.Client, url: str) -> None:
    loader = DataLoader(Dataset(url, client=client), batch_size=4, collate_fn=list)
    batch = next(iter(loader))
    assert [sample["data"] for sample in batch] == [content(sample["path"]) for sample in batch]


def test_a_workers_error_arrives_with_its_lines(client: shoal.Client, url: str, tmp_path: Path) -> None:
    dataset = Dataset(url, client=client)
    (tmp_path / "files" / "cat" / "03.bin").unlink()
    with pytest.raises(errors.ShoalError) as raised:
        list(DataLoader(dataset, 8, num_workers=1, multiprocessing_context="fork", collate_fn=list))
    assert "Original Traceback" in str(raised.value).splitlines()[1]
    assert "cat/03.bin" in str(raised.value)

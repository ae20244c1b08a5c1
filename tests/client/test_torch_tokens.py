"""Files of tokens: any window is a slice of all kept documents laid end to end, wherever they lie."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import shoal  # noqa: E402
from shoal import errors  # noqa: E402
from shoal.torch import Dataset, Document, Filter, Tokenizer  # noqa: E402
from tests.support.token_windows import expected_windows, positions_of, windows  # noqa: E402

BLOCK = 64 << 10
CODES = {"uint16": "H", "uint32": "I"}
END = 50_000

Make = Callable[..., Dataset]


def write(directory: Path, files: Sequence[Sequence[int]], dtype: str = "uint16") -> str:
    directory.mkdir(parents=True)
    for number, tokens in enumerate(files):
        (directory / f"{number:03}.bin").write_bytes(array(CODES[dtype], tokens).tobytes())
    return f"file://{directory}"


def tokens(seed: object, count: int, below: int = END) -> list[int]:
    chance = random.Random(str(seed))
    return [chance.randrange(below) for _ in range(count)]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 2, 7, 1000, 32_768, 40_001]), min_size=1, max_size=6),
    length=st.sampled_from([1, 2, 7, 100, 4096, 32_767, 32_768]),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_windows_are_slices(
    client: shoal.Client,
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    length: int,
    dtype: str,
) -> None:
    files = [tokens((sizes, number), size, 1 << (16 if dtype == "uint16" else 32)) for number, size in enumerate(sizes)]
    url = write(tmp_path_factory.mktemp("tokens") / "files", files, dtype)
    everything = [token for file in files for token in file]
    if len(everything) <= length:
        with pytest.raises(errors.NotFound, match=rf"{len(everything)} tokens, fewer than one sequence of {length}"):
            Dataset(url, format="tokens", dtype=dtype, sequence_length=length, client=client)
        return
    dataset = Dataset(url, format="tokens", dtype=dtype, sequence_length=length, client=client)
    count = (len(everything) - 1) // length
    assert len(dataset) == count
    numbers = random.Random(1).sample(range(count), min(count, 50))
    for number, sample in zip(numbers, dataset.__getitems__(numbers), strict=True):
        assert sample["tokens"].dtype == torch.int64
        assert sample["tokens"].tolist() == everything[number * length : (number + 1) * length + 1]


@pytest.fixture
def files() -> list[list[int]]:
    return [tokens(number, 30_000 + 5_000 * number) for number in range(4)]


@pytest.fixture
def url(tmp_path: Path, files: list[list[int]]) -> str:
    return write(tmp_path / "files", files)


def test_samples_are_writable_and_nobody_elses(client: shoal.Client, url: str) -> None:
    dataset = Dataset(url, format="tokens", sequence_length=100, client=client)
    (sample,) = dataset.__getitems__([3])
    expected = sample["tokens"].clone()
    sample["tokens"].fill_(-1)
    assert torch.equal(dataset[3]["tokens"], expected)


def test_places_and_shares(client: shoal.Client, url: str, files: list[list[int]]) -> None:
    length = 3000
    dataset = Dataset(url, format="tokens", sequence_length=length, client=client)
    places = dataset.places(range(len(dataset)))
    owners = [(number, offset) for number, file in enumerate(files) for offset in range(len(file))]
    for number, place in enumerate(places):
        blocks = {
            (f"{url}/{file:03}.bin", 2 * offset // BLOCK)
            for file, offset in owners[number * length : (number + 1) * length + 1]
        }
        assert {(info.url, first + more) for info, first, count in place for more in range(count)} == blocks
    firsts = [(place[0][0].url, place[0][1]) for place in places]
    for number in range(len(dataset)):
        assert list(dataset.shares(number)) == [n for n in range(len(dataset)) if firsts[n] == firsts[number]]
    assert dataset.shuffle_block == BLOCK // (2 * length)


def with_ends(seed: int) -> list[int]:
    """Documents of many lengths, each with its end but the last; two ends in a row are an empty document."""
    chance = random.Random(seed)
    made: list[int] = []
    for number in range(30):
        made += [*tokens((seed, number), chance.choice([0, 1, 50, 2_000])), END]
    return made + tokens(seed, 3)


def documents_of(file: list[int]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for token in file:
        found[-1].append(token)
        if token == END:
            found.append([])
    return [document for document in found if document]


def test_positions_and_filters_go_by_the_ends_of_documents(client: shoal.Client, tmp_path: Path) -> None:
    files = [with_ends(number) for number in range(3)]
    url = write(tmp_path / "ends", files)
    documents = [document for file in files for document in documents_of(file)]
    everything = Dataset(url, format="tokens", end=END, sequence_length=64, positions=True, client=client)
    assert windows(everything) == expected_windows([t for file in files for t in file], 64)
    found = [sample["positions"].tolist() for sample in everything.__getitems__(range(len(everything)))]
    assert found == expected_windows(positions_of(documents), 64)

    seen: list[Document] = []

    def keep(document: Document) -> bool:
        seen.append(document)
        return document.token_count % 2 == 1

    def chosen(name: str = "odd") -> Dataset:
        return Dataset(
            url, format="tokens", end=END, sequence_length=64, positions=True, filter=Filter(keep, name), client=client
        )

    filtered = chosen()
    paths = [f"{number:03}.bin" for number, file in enumerate(files) for _ in documents_of(file)]
    assert seen == [Document(path, len(document)) for path, document in zip(paths, documents, strict=True)]
    left = [document for document in documents if len(document) % 2]
    assert windows(filtered) == expected_windows([t for document in left for t in document], 64)
    found = [sample["positions"].tolist() for sample in filtered.__getitems__(range(len(filtered)))]
    assert found == expected_windows(positions_of(left), 64)
    firsts = [(place[0][0].url, place[0][1]) for place in filtered.places(range(len(filtered)))]
    for number in range(0, len(filtered), 7):
        assert list(filtered.shares(number)) == [n for n in range(len(filtered)) if firsts[n] == firsts[number]]

    del seen[:]
    assert chosen().digest == filtered.digest
    assert not seen, "what a filter said is kept under its name"
    assert chosen("another").digest not in (filtered.digest, everything.digest)
    assert len(seen) == len(documents)


def test_without_an_end_files_are_documents(client: shoal.Client, url: str, files: list[list[int]]) -> None:
    chosen = Filter(lambda document: document.path != "001.bin", "but one")
    dataset = Dataset(url, format="tokens", sequence_length=999, filter=chosen, positions=True, client=client)
    assert windows(dataset) == expected_windows([*files[0], *files[2], *files[3]], 999)
    assert dataset[30]["positions"].tolist() == [*range(29_970, 30_000), *range(970)]


def test_ends_are_looked_for_once(client: shoal.Client, address: str, tmp_path: Path) -> None:
    """The second time, nothing of the files is read."""
    url = write(tmp_path / "once", [with_ends(7), with_ends(8)])
    first = Dataset(url, format="tokens", end=END, positions=True, sequence_length=10, client=client)
    with shoal.connect(address) as other:
        second = Dataset(url, format="tokens", end=END, positions=True, sequence_length=10, client=other)
        assert other.stats().bytes < 2000
        for number in (0, 100):
            assert torch.equal(first[number]["positions"], second[number]["positions"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int32"}, "dtype: 'int32' is neither"),
        ({"sequence_length": 0}, "sequence_length: 0 is not above 0"),
        ({"end": 1 << 16}, "end: 65536 is no uint16"),
        ({"text_field": "body"}, "text_field: is of text; give a tokenizer"),
        ({"dtype": "uint16", "tokenizer": Tokenizer(len, "x")}, "dtype: is of files of tokens"),
        ({"format": "files"}, "sequence_length: is an option of format 'tokens', not of 'files'"),
        ({"format": "lines"}, "format: 'lines' is none of files, webdataset, tokens"),
    ],
)
def test_options_that_cannot_be(client: shoal.Client, url: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.BadRequest, match=says):
        Dataset(url, **{"format": "tokens", "sequence_length": 10, "client": client, **options})


def test_what_is_no_option_is_a_type_error(client: shoal.Client, url: str) -> None:
    with pytest.raises(TypeError, match="no option 'sequence'"):
        Dataset(url, format="tokens", sequence=5, client=client)  # type: ignore[call-arg]


def test_a_file_of_half_a_token_is_named(client: shoal.Client, url: str, tmp_path: Path) -> None:
    (tmp_path / "files" / "001.bin").write_bytes(b"odd")
    with pytest.raises(errors.BadRequest, match=r"001\.bin: its 3 bytes are no whole number of uint16"):
        Dataset(url, format="tokens", client=client)


def test_a_file_that_vanished_is_named(client: shoal.Client, url: str, tmp_path: Path) -> None:
    dataset = Dataset(url, format="tokens", sequence_length=100, client=client)
    (tmp_path / "files" / "001.bin").unlink()
    with pytest.raises(errors.ShoalError, match=r"001\.bin"):
        dataset[400]


def test_the_digest_is_of_what_numbers_the_samples(client: shoal.Client, url: str, tmp_path: Path) -> None:
    def digest(**options: Any) -> str:
        return Dataset(url, **{"format": "tokens", "sequence_length": 100, "client": client, **options}).digest

    digests = {digest(), digest(sequence_length=101), digest(dtype="uint32"), digest(names=["000.bin"])}
    assert digest(positions=True) == digest(transform=len) == digest(end=5) == digest()
    (tmp_path / "files" / "001.bin").write_bytes(bytes(2))
    digests.add(digest())
    assert len(digests) == 5


# Streams.


@pytest.fixture
def streamed(client: shoal.Client, url: str) -> Dataset:
    return Dataset(url, format="tokens", sequence_length=1000, client=client)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_has_one_order_for_any_number_of_workers(streamed: Dataset, workers: int) -> None:
    order = random.Random(2).sample(range(len(streamed)), 101)
    loader = torch.utils.data.DataLoader(
        streamed.iterable(batch_size=10, order=order), batch_size=10, num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    found = [window[0] for batch in loader for window in batch["tokens"].tolist()]
    assert found == [streamed[number]["tokens"][0] for number in order]


def test_a_stream_reads_batch_by_batch(streamed: Dataset, client: shoal.Client) -> None:
    stream = streamed.iterable(batch_size=8)
    assert len(stream) == len(streamed)
    before = client.stats().reads
    next(iter(stream))
    assert client.stats().reads - before == 8
    assert len(list(stream)) == len(streamed)
    assert [s["tokens"][0] for s in streamed.iterable(3, iter([5, 1]))] == [streamed[n]["tokens"][0] for n in (5, 1)]
    with pytest.raises(TypeError, match="unknown length"):
        len(streamed.iterable(order=iter([1])))
    with pytest.raises(errors.BadRequest, match="batch_size: 0"):
        streamed.iterable(batch_size=0)

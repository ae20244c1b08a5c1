"""Text that is tokenised once: every window is right, and the work is done once, whatever happens meanwhile."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import shoal  # noqa: E402
from shoal import derived, errors  # noqa: E402
from shoal.torch import DataLoader, Dataset, Filter, Tokenizer  # noqa: E402
from shoal.torch.formats import chunks  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.running_node import MakeProcess  # noqa: E402
from tests.support.token_windows import expected_windows, positions_of, windows  # noqa: E402


@pytest.fixture(autouse=True)
def empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a process that has made nothing yet."""
    monkeypatch.setattr(derived, "_remembered", derived._remembered.copy())


def encode(text: str) -> list[int]:
    """At the top of the module, where spawned workers find it."""
    return [ord(character) for character in text]


class Counting:
    """A tokenizer that knows what it was asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> list[int]:
        self.texts.append(text)
        return encode(text)


def text_of(seed: object, length: int) -> str:
    chance = random.Random(str(seed))
    return "".join(chance.choice("abc äß\n") for _ in range(length))


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[str, dict[str, list[str]]]:
    """A URL, and the texts by file: lines in three files, a document each in three others."""
    directory = tmp_path / "text"
    directory.mkdir()
    texts: dict[str, list[str]] = {}
    for name in ("a.jsonl", "c.jsonl", "d.JSONL"):
        texts[name] = [text_of((name, number), number * 7 % 300) for number in range(60)]
        lines = [json.dumps({"text": text, "body": text.upper()}, ensure_ascii=False) for text in texts[name]]
        lines[10:10] = ["", "  "]
        (directory / name).write_text("\n".join(lines) + ("\n" if name == "a.jsonl" else ""))
    for name in ("b.txt", "e.md", "f"):
        texts[name] = [text_of(name, 3000)]
        (directory / name).write_text(texts[name][0])
    (directory / "empty.txt").write_text("")
    return f"file://{directory}", dict(sorted(texts.items()))


@pytest.fixture(params=[1 << 20, 5000, 700, 100])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", request.param)
    return request.param


@pytest.mark.usefixtures("chunk_bytes")
def test_text_is_tokenised_document_by_document(client: shoal.Client, corpus: tuple[str, dict[str, list[str]]]) -> None:
    url, texts = corpus
    tokenizer = Counting()
    dataset = Dataset(
        url, format="tokens", tokenizer=Tokenizer(tokenizer, "letters"), end=7, sequence_length=50, positions=True,
        client=client,
    )  # fmt: skip
    every = [text for part in texts.values() for text in part]
    assert tokenizer.texts == every
    documents = [[*encode(text), 7] for text in every]
    assert windows(dataset) == expected_windows([t for document in documents for t in document], 50)
    found = [sample["positions"].tolist() for sample in dataset.__getitems__(range(len(dataset)))]
    assert found == expected_windows(positions_of(documents), 50)


@pytest.mark.usefixtures("chunk_bytes")
def test_documents_of_text_are_filtered_by_path_and_length(
    client: shoal.Client, corpus: tuple[str, dict[str, list[str]]]
) -> None:
    url, texts = corpus
    chosen = Filter(lambda document: document.token_count > 100 and document.path != "b.txt", "long")
    dataset = Dataset(
        url, format="tokens", tokenizer=Tokenizer(encode, "letters"), filter=chosen, sequence_length=50, client=client
    )
    left = [encode(text) for name, part in texts.items() for text in part if len(text) > 100 and name != "b.txt"]
    assert windows(dataset) == expected_windows([t for document in left for t in document], 50)


def test_another_field_may_have_the_text(client: shoal.Client, corpus: tuple[str, dict[str, list[str]]]) -> None:
    url, texts = corpus
    dataset = Dataset(
        url, format="tokens", suffixes=[".jsonl"], tokenizer=Tokenizer(encode, "letters"), text_field="body",
        sequence_length=100, client=client,
    )  # fmt: skip
    every = "".join(text.upper() for name, part in texts.items() if name.lower().endswith("l") for text in part)
    assert windows(dataset) == expected_windows(encode(every), 100)


def test_tokens_beyond_two_bytes_take_four(client: shoal.Client, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "a.txt").write_text("ab🐟" * 100)
    dataset = Dataset(
        f"file://{tmp_path}/wide",
        format="tokens",
        tokenizer=Tokenizer(encode, "wide"),
        sequence_length=2,
        client=client,
    )
    assert windows(dataset) == expected_windows(encode("ab🐟" * 100), 2)


@pytest.fixture
def options(corpus: tuple[str, dict[str, list[str]]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """For a data set of some 13 chunks."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 3000)
    return {"url": corpus[0], "format": "tokens", "sequence_length": 50}


def test_tokenised_once_and_kept_over_kill_9(
    node_process: MakeProcess, options: dict[str, Any], tmp_path: Path
) -> None:
    node = node_process({"nvme": [{"directory": str(tmp_path / "nvme"), "budget_bytes": "64MiB"}]})
    tokenizer = Counting()
    options["tokenizer"] = Tokenizer(tokenizer, "letters")
    with shoal.connect(node.address) as client:
        expected = windows(Dataset(**options, client=client))
    count = len(tokenizer.texts)
    waiting.until(lambda: node.status()["disk_queue"] == 0)
    node.kill()
    node.start()
    with shoal.connect(node.address) as client:
        assert windows(Dataset(**options, client=client)) == expected
        assert len(tokenizer.texts) == count
        assert node.status()["origin_requests"] == 2, "the listing alone: no text was read again"
        options["tokenizer"] = Tokenizer(tokenizer, "other letters")
        assert windows(Dataset(**options, client=client)) == expected
    assert len(tokenizer.texts) == 2 * count


def test_an_interrupted_run_goes_on_where_it_stopped(node_process: MakeProcess, options: dict[str, Any]) -> None:
    """On a node of its own: the shared one's small memory is full, and loses one chunk or another."""
    client = shoal.connect(node_process({}).address)
    texts: list[str] = []

    def interrupted(text: str) -> list[int]:
        if len(texts) == 100:
            raise KeyboardInterrupt
        texts.append(text)
        return encode(text)

    with pytest.raises(KeyboardInterrupt):
        Dataset(**options, tokenizer=Tokenizer(interrupted, "goes on"), client=client)
    rest = Counting()
    dataset = Dataset(**options, tokenizer=Tokenizer(rest, "goes on"), client=client)
    whole = Counting()
    assert windows(dataset) == windows(Dataset(**options, tokenizer=Tokenizer(whole, "whole"), client=client))
    assert texts + rest.texts != whole.texts, "the chunk in which it stopped is done again"
    assert rest.texts == whole.texts[-len(rest.texts) :]
    assert 0 < len(texts) + len(rest.texts) - len(whole.texts) < 30
    client.close()


def test_tokens_that_the_cache_lost_are_made_again(node_process: MakeProcess, options: dict[str, Any]) -> None:
    """On a node of its own: the shared one's small memory is full, and loses one chunk or another."""
    address = node_process({}).address
    tokenizer, client = Counting(), shoal.connect(address)
    dataset = Dataset(**options, tokenizer=Tokenizer(tokenizer, "lost"), client=client)
    expected, before = windows(dataset), len(tokenizer.texts)
    lost = {place[0][0].url: place[0][0] for place in dataset.places([0, 40, 90])}
    derived.forget(client, list(lost.values()))
    assert windows(dataset) == expected
    again = len(tokenizer.texts) - before
    assert 0 < again < before / 2
    with shoal.connect(address) as other:
        assert windows(Dataset(**options, tokenizer=Tokenizer(tokenizer, "lost"), client=other)) == expected
    assert len(tokenizer.texts) == before + again, "they are kept again"
    client.close()


def test_a_tokenizer_that_changed_its_mind_is_refused(client: shoal.Client, options: dict[str, Any]) -> None:
    counted: list[str] = []

    def changing(text: str) -> list[int]:
        counted.append(text)
        return [len(counted) % 1000] * len(text)

    dataset = Dataset(**options, tokenizer=Tokenizer(changing, "changing"), client=client)
    derived.forget(client, [dataset.places([5])[0][0][0]])
    with pytest.raises(errors.BadRequest, match="tokenizer 'changing': other tokens of the same text"):
        windows(dataset)


def test_without_a_node_nothing_fails(node_process: MakeProcess, options: dict[str, Any], client: shoal.Client) -> None:
    expected = windows(Dataset(**options, tokenizer=Tokenizer(encode, "letters"), client=client))
    node = node_process()
    with shoal.connect(node.address) as alone:
        names = [info.url.removeprefix(options["url"] + "/") for info in alone.list(options["url"])]
        node.kill()
        tokenizer = Counting()
        dataset = Dataset(**options, names=names, tokenizer=Tokenizer(tokenizer, "letters"), client=alone)
        count = len(tokenizer.texts)
        assert windows(dataset) == expected
        assert len(tokenizer.texts) == count, "what no cache keeps, the process remembers"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text"', r"a\.jsonl: the line at offset 14 is no JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"texts": "b"}', r"a\.jsonl: the line at offset 14 has no text in a field 'text'"),
        ("a.jsonl", b"[]", r"a\.jsonl: the line at offset 0 has no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a\.jsonl: is not UTF-8 text at offset 24"),
        ("a.txt", b"abc\xff", r"a\.txt: is not UTF-8 text at offset 3"),
        ("a.jsonl.gz", b"abc", r"a\.jsonl\.gz: is compressed"),
    ],
)
def test_what_is_no_text_is_named(client: shoal.Client, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / name).write_bytes(content)
    with pytest.raises(errors.BadRequest, match=says):
        Dataset(f"file://{tmp_path}/bad", format="tokens", tokenizer=Tokenizer(encode, "letters"), client=client)


@pytest.mark.parametrize("ids", [[1 << 32], [-1], ["a"]])
def test_what_is_no_token_is_named(client: shoal.Client, options: dict[str, Any], ids: list[Any]) -> None:
    with pytest.raises((OverflowError, TypeError)) as raised:
        Dataset(**options, tokenizer=Tokenizer(lambda _: ids, f"bad {ids}"), client=client)
    assert "at document 0 of" in raised.value.__notes__[0]
    assert "a.jsonl" in raised.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_read_the_same(client: shoal.Client, options: dict[str, Any], context: str, workers: int) -> None:
    dataset = Dataset(**options, tokenizer=Tokenizer(encode, "letters"), client=client)
    assert len(pickle.dumps(dataset)) < 10_000
    loader = DataLoader(dataset, batch_size=16, num_workers=workers, multiprocessing_context=context)
    assert [window for batch in loader for window in batch["tokens"].tolist()] == windows(dataset)

"""TorchTitan itself, in its own environment: our loader in it, any number of ranks, and configurations that build."""

from __future__ import annotations

import itertools
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest

import shoal
from tests.hosts.conftest import RunHost
from tests.support.s3_server import S3Server

BUCKET = "torchtitan-text"
BEGIN, END = 0, 1
_LETTERS = string.ascii_lowercase
IGNORED = -100

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first run makes the environment


def _document(number: int) -> str:
    chance = random.Random(number)
    return "".join(chance.choices(_LETTERS, k=chance.randrange(1, 300)))


DOCUMENTS = [_document(number) for number in range(10)]


@pytest.fixture(scope="module")
def url(s3_server: S3Server) -> str:
    for number, text in enumerate(DOCUMENTS):
        s3_server.put(BUCKET, f"train/{number:02}.txt", text.encode())
    return f"s3://{BUCKET}/train"


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Folder of a tokenizer that gives each letter a token: 2 for a, 3 for b, ..."""
    special = {"<begin>": BEGIN, "<end>": END}
    added = [
        {"id": number, "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for text, number in special.items()
    ]
    vocabulary = special | {letter: number for number, letter in enumerate(_LETTERS, start=2)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<begin>", "eos_token": "<end>"}))
    return str(folder)


def _tokens(text: str) -> list[int]:
    return [BEGIN, *(2 + _LETTERS.index(letter) for letter in text), END]


def test_sequences_are_those_of_the_text(client: shoal.Client, url: str, tokenizer: str, run_host: RunHost) -> None:
    found = run_host("torchtitan", "sequences.py", url, tokenizer)
    assert (found["begin"], found["end"]) == (BEGIN, END)
    stream = [(token, place) for text in DOCUMENTS for place, token in enumerate(_tokens(text))]
    count = (len(stream) - 1) // 16 * 16
    assert found["tokens"] == [token for token, _ in stream[:count]]
    # No document is taught to begin another.
    assert found["labels"] == [token if place else IGNORED for token, place in stream[1 : count + 1]]
    # Positions count from the beginning of the document, or of the sequence that it was cut into.
    assert found["positions"] == [min(place, number % 16) for number, (_, place) in enumerate(stream[:count])]

    no_url, path, nameless, seed, data = found["refusals"]
    assert "dataloader.dataset: no URL" in no_url
    assert "dataloader.dataset_path=" in path
    assert "dataloader.tokenizer_name: Nameless" in nameless
    assert "seed=0 here, but seed=1 in the state" in seed
    assert data.startswith("dataset: ")


def test_any_number_of_ranks_reads_the_same_stream(
    client: shoal.Client, url: str, tokenizer: str, tmp_path: Path, run_host: RunHost
) -> None:
    found = run_host("torchtitan", "elastic.py", url, tokenizer, str(tmp_path / "checkpoints"))
    count, plain = found["count"], found["plain"]
    # 1 rank of 3, then 2 ranks of 4, then 3 ranks of 2, across the ends of epochs, without loss or repeat.
    assert found["elastic"] == plain
    assert found["elastic workers"] == plain
    assert {name: found["state"][name] for name in ("version", "seed", "epoch", "position")} == {
        "version": 1,
        "seed": 0,
        "epoch": 63 // count,
        "position": 63 % count,
    }
    epochs = [plain[start : start + count] for start in range(0, len(plain) - count, count)]
    assert len(epochs) >= 2
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert all(first != second for first, second in itertools.pairwise(epochs))
    for shuffle in ("blocks", "none", "finite"):
        assert sorted(found[shuffle]) == sorted(epochs[0])
    assert found["none"] != found["finite"] == epochs[0]
    assert found["finite steps of 8"] == count // 8


def test_configurations_build(run_host: RunHost) -> None:
    ranks = {"llama3_debugmodel": 4, "llama3_8b": 8, "llama3_70b": 64, "llama3_405b": 128}
    parameters = {
        "llama3_debugmodel": 6_163_712,
        "llama3_8b": 8_030_261_248,
        "llama3_70b": 70_553_706_496,
        "llama3_405b": 405_853_388_800,
    }
    tensor_parallel = {"llama3_70b": 8, "llama3_405b": 8}
    found: dict[str, Any] = run_host("torchtitan", "configurations.py", *(f"{n}={r}" for n, r in ranks.items()))
    for name, built in found.items():
        assert built["parameters"] == parameters[name], name
        assert built["batch ranks"] == ranks[name] // tensor_parallel.get(name, 1)
        # Every rank holds its part, within what rounding and unsharded norms add.
        assert parameters[name] / ranks[name] <= built["largest part"] < 1.01 * parameters[name] / ranks[name], name
        assert built["loader"] == built["validation"] == "ShoalDataLoader.Config"
        assert built["dataset"] == "s3://bucket/text"

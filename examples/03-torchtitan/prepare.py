"""Makes what the example trains on: a folder of texts and a tokenizer of 2,000 entries for the debug model.

The text is the documentation of the Linux kernel where Debian's package linux-doc is installed, else any folder given.
"""

# ruff: noqa: T201 - what it prints is for a person
from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2000  # the debug model has 2,048 entries
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
_SUFFIXES = (".rst", ".txt", ".md", ".py", ".rst.gz", ".txt.gz", ".md.gz")


def linux_documentation() -> Path | None:
    """Debian's linux-doc, where it is installed."""
    return next(iter(sorted(Path("/usr/share/doc").glob("linux-doc*/Documentation"))), None)


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(flat name, content) of the text files below a folder, hidden folders left out."""
    for above, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(above) / file for file in sorted(files) if file.endswith(_SUFFIXES)):
            content = path.read_bytes()
            name = str(path.relative_to(folder)).replace("/", "-").removesuffix(".gz")
            yield name + ".txt", gzip.decompress(content) if path.suffix == ".gz" else content


def prepare(folder: Path, work: Path, limit_bytes: int) -> None:
    """Write work/text and work/tokenizer."""
    (work / "text").mkdir(parents=True, exist_ok=True)
    (work / "tokenizer").mkdir(exist_ok=True)
    kept: list[str] = []
    size = 0
    for name, content in texts(folder):
        if size + len(content) > limit_bytes:
            break
        size += len(content)
        kept.append(content.decode("utf-8", "replace"))
        (work / "text" / name).write_text(kept[-1], "utf-8")
    if not kept:
        sys.exit(f"{folder}: no file here ends in {', '.join(_SUFFIXES)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(kept[:200], trainer)
    tokenizer.save(str(work / "tokenizer" / "tokenizer.json"))
    special = {"bos_token": BEGIN, "eos_token": END}
    (work / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(special))
    print(f"{len(kept)} texts, {size:,} bytes in {work / 'text'}; tokenizer of {tokenizer.get_vocab_size()} entries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="where to write")
    parser.add_argument("--text", type=Path, help="folder of texts (default: linux-doc)")
    parser.add_argument("--limit-bytes", type=int, default=8 << 20)
    arguments = parser.parse_args()
    folder = arguments.text or linux_documentation()
    if folder is None:
        sys.exit("linux-doc is not installed here (/usr/share/doc/linux-doc*); name a folder of texts with --text")
    prepare(folder, arguments.work, arguments.limit_bytes)


if __name__ == "__main__":
    main()

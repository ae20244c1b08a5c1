"""What names a tokenizer: tokens that were made once are used again only by the tokenizer that would make the same.

A tokenizer of TorchTitan is a folder of files; the digest of those that decide the tokens is its identity, wherever the
folder lies. A tokenizer without a folder has none that we could know, so its user gives one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from shoal_core.errors import BadRequest

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json")


def identity(tokenizer: Any, name: str | None) -> str:
    """`name` if one is given, else what the tokenizer's files say; BadRequest when there are none."""
    if name:
        return name
    folder = getattr(tokenizer, "tokenizer_path", None)
    files = [Path(folder) / file for file in _FILES if (Path(folder) / file).is_file()] if folder else []
    if not files:
        raise BadRequest(
            f"dataloader.tokenizer_name: {type(tokenizer).__name__} has no files to take an identity from "
            f"({folder or 'no tokenizer_path'}); name it, and another name whenever it gives other tokens"
        )
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


class DocumentEncoder:
    """A document's tokens, with the tokens that begin and end one, as far as the tokenizer has them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_bos=True, add_eos=True)

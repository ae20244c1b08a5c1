"""Objects for tests: files of random bytes, which a node reads as file:// URLs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

MakeObject = Callable[..., tuple[str, bytes]]


@pytest.fixture
def make_object(tmp_path: Path) -> MakeObject:
    """make_object(size, name="object") -> (URL, bytes). The bytes depend on name and size only."""

    def make(size: int, name: str = "object") -> tuple[str, bytes]:
        data = random.Random(f"{name}:{size}").randbytes(size)
        path = tmp_path / "objects" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:  # else it would be another version of itself
            path.write_bytes(data)
        return f"file://{path}", data

    return make

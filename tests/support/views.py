"""Views for tests of what brings them: made, as JSON, in a file and at an origin."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shoal_core import view
from tests.support.http_origin import HttpOrigin


def of(epoch: int, *names: str) -> view.View:
    return view.make(epoch, [view.Node(name, (f"tcp:{name}:7000",), 1 << 40) for name in names or ("a",)])


def json_of(epoch: int, *names: str) -> bytes:
    return msgspec.json.encode(of(epoch, *names))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the view of epoch 1."""
    found = tmp_path / "view.json"
    found.write_bytes(json_of(1))
    return found


@pytest.fixture
def origin(http_origin: HttpOrigin) -> HttpOrigin:
    """An origin that has it at /view."""
    http_origin.put("/view", json_of(1))
    return http_origin

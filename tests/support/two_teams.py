"""Two teams with a data set each, on one node that asks for tokens: what tests of access begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import identities
from tests.support.identities import Asker, token
from tests.support.running_node import InProcessNode, MakeInProcess

A, B = b"images of team-a", b"speech of team-b!"
"""Content of the one object of each."""

IMAGES, SPEECH = {"images": "team-a.images"}, {"speech": "team-b.speech"}
"""What readers of each team call their data set, and what the node calls it."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where the two data sets lie, beside each other."""
    for team, name, content in (("a", "images", A), ("b", "speech", B)):
        folder = tmp_path / f"team-{team}" / name
        folder.mkdir(parents=True)
        (folder / "one").write_bytes(content)
    return tmp_path


def configuration(data: Path, **access: Any) -> dict[str, Any]:
    """What a node is told of them."""
    return {
        "datasets": {
            "team-a.images": {"url": f"file://{data}/team-a/images"},
            "team-b.speech": {"url": f"file://{data}/team-b/speech"},
        },
        "access": identities.access_section(key=identities.key_file(data), **access),
    }


@pytest.fixture
def node(in_process_node: MakeInProcess, data: Path) -> InProcessNode:
    return in_process_node(configuration(data))


@pytest.fixture
def operator(node: InProcessNode) -> Iterator[Asker]:
    """Who may do everything: by the node's own socket."""
    with Asker(node.address) as asker:
        yield asker


@pytest.fixture
def reader(node: InProcessNode) -> Iterator[Asker]:
    """A pod of team-a, by TCP."""
    with Asker(node.tcp_address, token(datasets=IMAGES)) as asker:
        yield asker

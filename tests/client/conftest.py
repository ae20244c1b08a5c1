"""One node for all tests of the adapters, which look at files and never at the node's own state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal
from tests.support import running_node


@pytest.fixture(scope="session")
def shared_node() -> Iterator[running_node.NodeProcess]:
    """A node process whose blocks are small, so that ordinary files have several."""
    with running_node.short_directory() as directory:
        node = running_node.NodeProcess(directory, running_node.configuration(directory, {}), None)
        try:
            node.start()
            yield node
        finally:
            node.kill()


@pytest.fixture
def address(shared_node: running_node.NodeProcess) -> str:
    return shared_node.address


@pytest.fixture
def client(address: str) -> Iterator[shoal.Client]:
    with shoal.connect(address) as connected:
        yield connected


@pytest.fixture
def config_for_connect(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`shoal.connect()` without arguments finds the shared node, here and in child processes."""
    path = tmp_path / "client.json"
    path.write_text(json.dumps({"addresses": [address]}))
    monkeypatch.setenv("SHOAL_CONFIG", str(path))
    return path

"""Directories of its own for an embedded node, short enough for a socket, and budgets that suit a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.cli import main


@pytest.fixture
def embedded_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory above them: run/ (socket, log), cache/ (disk tier), shoal/node.toml (settings)."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as directory:
        monkeypatch.setenv("SHOAL_RUNTIME_DIR", f"{directory}/run")
        monkeypatch.setenv("SHOAL_CACHE_DIR", f"{directory}/cache")
        monkeypatch.setenv("XDG_CONFIG_HOME", directory)
        settings = Path(directory, "shoal", "node.toml")
        settings.parent.mkdir()
        settings.write_text(
            'dram = {budget_bytes = "64MiB"}\n'
            f'nvme = [{{directory = "{directory}/cache/nvme", budget_bytes = "128MiB"}}]\n'
        )
        try:
            yield Path(directory)
        finally:
            settings.unlink()  # a broken one must not keep us from stopping the node
            main(["stop"])  # a test that failed in the middle leaves no node behind

"""The `shoal` command in this process, and where blocks are, for tests of the command over a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import shoal as shoal_package
from shoal import placing
from shoal.cli import main
from shoal.objects import ObjectInfo
from tests.support import waiting
from tests.support.nodes import Nodes

Shoal = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shoal(capfd: pytest.CaptureFixture[str]) -> Shoal:
    """Runs the command in this process; (exit code, output, errors)."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def look(nodes: Nodes, url: str | ObjectInfo) -> list[placing.Block]:
    """Where the blocks are now, everybody asked."""
    with shoal_package.connect(nodes[1].address) as client:
        info = client.info(url) if isinstance(url, str) else url
        members = client.members()
        blocks = placing.look(members, list(placing.all_blocks([info])), waiting.deadline())
        placing.ask_everybody(members, blocks, waiting.deadline())
        return blocks

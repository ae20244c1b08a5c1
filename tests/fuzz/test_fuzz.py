"""Runs the fuzzers for a few seconds each, as programs of their own: they instrument what they import."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 15


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python or processor"
)
@pytest.mark.timeout(120)
def test_a_node_survives_any_connection(tmp_path: Path) -> None:
    options = [f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.fuzz_session", *options],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    crashes = [path.read_bytes() for path in tmp_path.iterdir()]
    assert ended.returncode == 0, f"{ended.stderr[-3000:]}\ninputs: {crashes!r}"
    assert "Done " in ended.stderr, ended.stderr[-2000:]

"""Host libraries in locked environments of their own: a test here runs a script of the host's folder in a child.

`run_host(host, script, *arguments)` runs tests/hosts/<host>/<script> with that host's Python (`tools/hosts`) and gives
back what it printed last, as JSON; with "-c" as the script the first argument is its text. The child finds the node
as every process does, by SHOAL_CONFIG.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from tests.support import running_node
from tests.support.s3_server import S3Server

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT_TIMEOUT_S = 300.0
"""Streaming and TorchTitan take a quarter of a minute of one processor to import."""
TOOLS_ENVIRONMENT = dict(os.environ)
"""Of the time before the tests got caches of their own: uv's and ours are the machine's."""

RunHost = Callable[..., Any]


@functools.cache
def host_python(host: str) -> str:
    """Path of the host's Python; skips the test where its environment cannot be made."""
    done = subprocess.run(
        [REPOSITORY / "tools" / "hosts", host], env=TOOLS_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def run_host(tmp_path: Path) -> RunHost:
    """run_host(host, script, *arguments) -> what it printed in its last line; its output if it failed."""

    def run(host: str, script: str, *arguments: str) -> Any:
        faulthandler.cancel_dump_traceback_later()  # a minute is no hang here, and the child has a limit of its own
        scripts = REPOSITORY / "tests" / "hosts" / host
        rooms = ("core", "transport", "client", "cache-node")
        done = subprocess.run(
            [host_python(host), script if script == "-c" else scripts / script, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(str(REPOSITORY / room) for room in rooms)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=SCRIPT_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{script} {arguments}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def node(
    s3_environment: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[running_node.NodeProcess]:
    """A node that reads the S3 server, found by every process of the test."""
    with running_node.short_directory() as directory:
        process = running_node.NodeProcess(directory, running_node.configuration(directory, {}), None)
        config = tmp_path / "client.json"
        config.write_text(json.dumps({"addresses": [process.address]}))
        monkeypatch.setenv("SHOAL_CONFIG", str(config))
        try:
            process.start()
            yield process
        finally:
            process.kill()


@pytest.fixture
def client(node: running_node.NodeProcess) -> Iterator[shoal.Client]:
    with shoal.connect(node.address) as connected:
        yield connected

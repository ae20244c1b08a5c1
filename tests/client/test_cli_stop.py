"""The embedded node's life as the command line sees it: started by the first read, ended by `shoal stop`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.cli import main
from tests.support.running_node import MakeProcess

PROGRAM = [sys.executable, "-m", "shoal.cli"]


def test_the_first_read_starts_it_and_stop_ends_it(
    embedded_home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "object").write_bytes(b"some bytes")
    assert main(["stat"]) == 1, "asking for a node must not start one"
    capfd.readouterr()
    # In a process of its own, as a user would: the node must outlive it.
    read = subprocess.run([*PROGRAM, "cat", f"file://{tmp_path}/object"], capture_output=True, text=True, check=True)
    assert read.stdout == "some bytes"
    assert "shoal: embedded node started, pid " in read.stderr and "shoal stop" in read.stderr
    pid = int(read.stderr.partition("pid ")[2].partition(",")[0])
    assert main(["stat"]) == 0
    assert f"embedded-{os.getuid()} (embedded)" in capfd.readouterr().out
    assert main(["stop"]) == 0
    assert f"pid {pid}, has ended" in capfd.readouterr().out
    assert not Path("/proc", str(pid), "cmdline").exists() or not Path("/proc", str(pid), "cmdline").read_bytes()
    assert main(["stop"]) == 0
    assert capfd.readouterr().out == "no node is running\n"
    # What it had cached is still there for the next.
    again = subprocess.run(
        [*PROGRAM, "ls", "--json", f"file://{tmp_path}/object"], capture_output=True, text=True, check=True
    )
    assert '"disk_bytes":10' in again.stdout
    assert main(["stop"]) == 0


def test_a_standing_node_is_not_ours_to_stop(node_process: MakeProcess, capsys: pytest.CaptureFixture[str]) -> None:
    node = node_process()
    assert main(["stop", "--address", node.address]) == 1
    assert "node-1" in capsys.readouterr().err
    assert node.status()["pid"] == node.pid


def test_what_was_to_be_written_is_written_before_it_ends(
    node_process: MakeProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = node_process({"linger_s": 600, "nvme": [{"directory": str(tmp_path / "nvme"), "budget_bytes": "128MiB"}]})
    (tmp_path / "object").write_bytes(os.urandom(20_000_000))
    url = f"file://{tmp_path}/object"
    assert main(["warm", url, "--address", node.address]) == 0
    assert main(["stop", "--address", node.address]) == 0
    assert node.wait() == 0
    node.start()
    capsys.readouterr()
    assert main(["stat", url, "--json", "--address", node.address]) == 0
    assert '"disk_bytes":20000000' in capsys.readouterr().out

"""`shoal top` over a real node: rates are differences of the node's own counters, and leaving it is no failure."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

import shoal
from shoal.cli import main, top
from tests.support.running_node import MakeProcess, NodeProcess


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "object").write_bytes(os.urandom(200_000))
    return f"file://{tmp_path}/object"


def shown(sample: top.Sample) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(top.report(sample))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(name + " "))
    return line.removeprefix(name).split()


def test_rates_are_differences_over_time(node_process: MakeProcess, file: str) -> None:
    node = node_process()
    with shoal.connect(node.tcp_address) as client:
        client.read(file)
        before = node.status()
        client.read(file)
        client.read(file, 0, 2000)
        sample = top.Sample(node.status(), before, 2.0)
    text = shown(sample)
    assert top.rates(sample)["reads_per_s"]["tcp"] == 2.5  # blocks of 64 KiB: four and one, in two seconds
    assert row(text, "tcp") == ["2.50", "/s", "101", "kB/s", "100", "%", "0", "%", "0", "%"]
    assert row(text, "shared memory")[:2] == ["0", "/s"]
    assert "node-1" in text and f"pid {node.pid}" in text
    assert row(text, "DRAM")[2:4] == ["48.0", "MiB"]


def test_trouble_is_shown_and_only_then(node_process: MakeProcess, file: str) -> None:
    node = node_process()
    before = node.status()
    assert "fallbacks" not in shown(top.Sample(before, before, 1.0))
    # A client that may lease nothing is served by copies, which is a fallback.
    strict = node_process({"leases": {"client_bytes_max": 0}})
    before = strict.status()
    with shoal.connect(strict.address) as client:
        client.read(file)
    assert "fallbacks lease limit: 4 (+4 /s)" in shown(top.Sample(strict.status(), before, 1.0))


def test_it_fits_a_terminal_of_80_columns(node_process: MakeProcess) -> None:
    values = node_process().status()
    console = Console(file=io.StringIO(), width=80)
    lines = console.render_lines(top.report(top.Sample(values, values, 1.0)), pad=False)
    text = ["".join(segment.text for segment in line).rstrip() for line in lines]
    assert len(text) < 24
    assert not any("…" in line for line in text)


def test_one_sample(node_process: MakeProcess, capsys: pytest.CaptureFixture[str]) -> None:
    node = node_process()
    assert main(["top", "--once", "--interval", "0.1", "--address", node.address]) == 0
    assert capsys.readouterr().out.startswith("node-1  pid ")
    assert main(["top", "--once", "--json", "--interval", "0.1", "--address", node.address]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["values"]["pid"] == node.pid and document["rates"]["fill_bytes_per_s"] == 0
    assert 0.1 <= document["seconds"] < 5


def test_no_node_is_a_failure_and_starts_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once"]) == 1
    assert "no node answers at unix:" in capsys.readouterr().err


def test_on_a_terminal_it_redraws_until_ctrl_c(node_process: MakeProcess) -> None:
    node = node_process()
    code, seen = _in_terminal(node)
    assert code == 0
    assert "Traceback" not in seen


def _in_terminal(node: NodeProcess) -> tuple[int, str]:
    """Exit code and output of `shoal top` on a pseudo-terminal, interrupted once two samples were drawn."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", "top", "--interval", "0.1", "--address", node.address],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    watchdog = threading.Timer(20, process.kill)
    watchdog.start()
    seen = b""
    interrupted = False
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
            if seen.count(b"since it started") >= 2 and not interrupted:
                interrupted = True
                process.send_signal(signal.SIGINT)
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        watchdog.cancel()
        watchdog.join()
        os.close(ours)
    return process.wait(20), seen.decode()

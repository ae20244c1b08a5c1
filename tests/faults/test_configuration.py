"""A node that was told nonsense ends with status 1 and one line: the file, the field and what is allowed."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal_node import __main__ as node_main
from tests.support.running_node import MakeProcess, configuration, merged

GOOD: dict[str, Any] = {
    "node_name": "node-1",
    "dram": {"budget_bytes": "48MiB"},
    "doors": {"unix": "/tmp/shoal-no-such/node.sock"},
}


def run_main(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `python -m shoal_node` says when it refuses with status 1."""
    monkeypatch.setattr(sys, "argv", ["shoal_node", *arguments])
    assert node_main.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("shoal: ") and said.count("\n") == 1, said
    return said


def run_process(file: Path, environment: dict[str, str] | None = None) -> str:
    """The same in a process of its own, for what goes wrong after the file was read."""
    done = subprocess.run(
        [sys.executable, "-m", "shoal_node", "--config", str(file)],
        env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"dram": {"budget": "1GiB"}}, ["dram.budget", "unknown field", "budget_bytes"]),
        ({"drum": {}}, ["drum", "unknown field", "did you mean dram?"]),
        ({"node_name": None}, ["node_name", "required"]),
        ({"node_name": 7}, ["node_name", "7"]),
        ({"dram": {"budget_bytes": "lots"}}, ["dram.budget_bytes", "'lots'", "8GiB"]),
        ({"dram": {"budget_bytes": -1}}, ["dram.budget_bytes", "-1"]),
        ({"dram": {"budget_bytes": 0}}, ["dram.budget_bytes", "too small"]),
        ({"dram": {"budget_bytes": 1.5}}, ["dram.budget_bytes", "1.5"]),
        ({"dram": {"budget_bytes": True}}, ["dram.budget_bytes", "True"]),
        ({"dram": {"huge_pages": "sometimes"}}, ["dram.huge_pages", "sometimes"]),
        ({"fill": {"block_size_bytes": 1000}}, ["fill.block_size_bytes", "1000", "power of two"]),
        ({"fill": {"block_size_bytes": "1GiB"}}, ["fill.block_size_bytes", "16 MiB"]),
        ({"fill": {"timeout_s": 0}}, ["fill.timeout_s", "0"]),
        ({"fill": {"timeout_s": float("nan")}}, ["fill.timeout_s", "nan"]),
        ({"fill": {"concurrency": 0}}, ["fill.concurrency", "0"]),
        ({"doors": {"unix": None}}, ["doors", "at least one of unix and tcp"]),
        ({"doors": {"unix": "node.sock"}}, ["doors.unix", "absolute"]),
        ({"doors": {"unix": "/" + "x" * 107}}, ["doors.unix", "107"]),
        ({"doors": {"tcp": "localhost"}}, ["doors.tcp", "host:port"]),
        ({"doors": {"tcp": "localhost:65536"}}, ["doors.tcp", "host:port"]),
        ({"nvme": [{"directory": "cache", "budget_bytes": "1GiB"}]}, ["nvme[0].directory", "absolute"]),
        ({"nvme": [{"directory": "/tmp/x", "budget_bytes": "1KiB"}]}, ["nvme[0].budget_bytes", "1024"]),
        ({"nvme": [{"directory": "/tmp/x"}]}, ["nvme[0].budget_bytes", "required"]),
        ({"leases": {"client_bytes_max": "1GiB"}}, ["leases.client_bytes_max", "DRAM budget"]),
        ({"datasets": {"Big_One": {"url": "s3://b"}}}, ["datasets.Big_One", "DNS label"]),
        ({"datasets": {"big": {"url": "b"}}}, ["datasets.big.url", "'b'"]),
        ({"datasets": {"big": {"url": "s3://b", "eviction": "lru"}}}, ["datasets.big.eviction", "lru"]),
        ({"datasets": {"big": {"url": "s3://b", "quota_bytes": 5}}}, ["datasets.big.quota_bytes", "one block"]),
        ({"origins": {"bucket": {}}}, ["origins.bucket", "s3://bucket"]),
        ({"linger_s": -1}, ["linger_s", "-1"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_named(
    overrides: dict[str, Any], says: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "node.json"
    file.write_text(json.dumps(merged(GOOD, overrides)))
    said = run_main(["--config", str(file)], monkeypatch, capsys)
    assert str(file) in said
    assert all(text in said for text in says), said


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("node.toml", b"node_name = \n", "line 1"),
        ("node.toml", b'node_name = "\xff"\n', "utf-8"),
        ("node.toml", b"", "required"),
        ("node.json", b"{", "line 1"),
        ("node.json", b"[]", "table"),
        ("node.json", b"[" * 100_000, "nested"),
        ("node.json", b"", "line 1"),
        ("node.toml", os.urandom(4096), ""),
    ],
    ids=["toml syntax", "not utf-8", "empty toml", "json syntax", "a list", "deep", "empty json", "random bytes"],
)
def test_a_file_that_is_no_configuration_is_named(
    name: str, content: bytes, says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / name
    file.write_bytes(content)
    said = run_main(["--config", str(file)], monkeypatch, capsys)
    assert str(file) in said and says in said


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.toml"
    assert f"{missing}: No such file" in run_main(["--config", str(missing)], monkeypatch, capsys)
    assert f"{tmp_path}: Is a directory" in run_main(["--config", str(tmp_path)], monkeypatch, capsys)
    if os.getuid() != 0:  # root may read everything
        missing.write_text("")
        missing.chmod(0)
        assert f"{missing}: Permission denied" in run_main(["--config", str(missing)], monkeypatch, capsys)


def test_the_only_flag_is_required() -> None:
    done = subprocess.run([sys.executable, "-m", "shoal_node"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2 and "--config" in done.stderr


def write(directory: Path, overrides: dict[str, Any]) -> Path:
    file = directory / "node.json"
    file.write_text(json.dumps(configuration(directory, overrides)))
    return file


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"doors": {"unix": "/proc/no/node.sock"}}, ["doors.unix", "/proc/no"]),
        ({"doors": {"tcp": "192.0.2.1:9"}}, ["doors.tcp", "192.0.2.1:9"]),
        ({"doors": {"control": "unix:/proc/no/control.sock"}}, ["/proc/no/control.sock"]),
        ({"nvme": [{"directory": "/proc/no/cache", "budget_bytes": "64MiB"}]}, ["/proc/no/cache"]),
        ({"dram": {"huge_pages": "require", "budget_bytes": "9TiB"}}, ["dram."]),
        ({"dram": {"budget_bytes": "600KiB"}, "fill": {"block_size_bytes": "4MiB"}}, ["dram.budget_bytes", "4194304"]),
    ],
    ids=["socket directory", "address of another host", "control", "disk directory", "huge pages", "below one block"],
)
def test_what_cannot_be_opened_is_named(overrides: dict[str, Any], says: list[str], tmp_path: Path) -> None:
    said = run_process(write(tmp_path, overrides))
    assert said.startswith("shoal: ")
    assert all(text in said for text in says), said


def test_a_file_where_the_socket_should_be_is_kept(tmp_path: Path) -> None:
    """Only a socket that a dead node left is replaced."""
    precious = tmp_path / "node.sock"
    precious.write_text("a thesis")
    said = run_process(write(tmp_path, {}))
    assert "doors.unix" in said and str(precious) in said
    assert precious.read_text() == "a thesis"


def test_a_socket_that_a_dead_node_left_is_replaced(node_process: MakeProcess) -> None:
    node = node_process()
    node.kill()
    assert os.path.exists(node.socket_path)
    node.start()
    assert node.status()["node"] == "node-1"


def test_a_second_node_on_the_same_socket_is_refused(node_process: MakeProcess, tmp_path: Path) -> None:
    node = node_process()
    said = run_process(write(tmp_path, {"doors": {"unix": node.socket_path}}))
    assert "doors.unix" in said and node.socket_path in said and str(node.pid) in said
    assert node.status()["pid"] == node.pid, "the first goes on"


def test_a_socket_of_a_node_that_is_too_busy_to_answer_is_not_taken(tmp_path: Path) -> None:
    """Nobody accepts, the backlog is full, and still somebody listens there."""
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        try:
            for client in clients:
                client.setblocking(False)
                client.connect_ex(str(path))
            before = path.stat().st_ino
            assert "doors.unix" in run_process(write(tmp_path, {}))
            assert path.stat().st_ino == before
        finally:
            for client in clients:
                client.close()


def test_a_second_node_on_the_same_disk_directory_is_refused(node_process: MakeProcess, tmp_path: Path) -> None:
    nvme = [{"directory": str(tmp_path / "cache"), "budget_bytes": "64MiB"}]
    node = node_process({"nvme": nvme})
    said = run_process(write(tmp_path, {"nvme": nvme}))
    assert f"{tmp_path}/cache" in said and f"in use by process {node.pid}" in said
    assert node.status()["pid"] == node.pid
    node.kill()
    with (tmp_path / "cache" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # kill -9 gives it free


def test_a_port_in_use_is_named(node_process: MakeProcess, tmp_path: Path) -> None:
    tcp = node_process().tcp_address.removeprefix("tcp:")
    said = run_process(write(tmp_path, {"doors": {"tcp": tcp}}))
    assert "doors.tcp" in said and tcp in said

"""`shoal doctor`: each thing that can be wrong is found, and only what is wrong."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from shoal.cli import main
from shoal.cli.doctor import host
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.running_node import MakeProcess

Checks = dict[str, dict[str, Any]]


def examine(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Checks]:
    """(exit code, last check of each name)."""
    capsys.readouterr()
    code = main(["doctor", "--json", *words])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, {check["name"]: check for check in found}


@pytest.fixture
def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp:127.0.0.1:{probe.getsockname()[1]}"


def test_a_healthy_node(node_process: MakeProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = node_process({"nvme": [{"directory": str(tmp_path / "nvme"), "budget_bytes": "64MiB"}]})
    (tmp_path / "object").write_bytes(b"x" * 1000)
    code, checks = examine(capsys, f"file://{tmp_path}/object", "--address", node.address)
    assert code == 0
    assert {name for name, check in checks.items() if check["outcome"] == "fail"} == set()
    for name in ("sealed memory", "node", "shared memory", "round trip", "disk room", "disk speed", "origin"):
        assert checks[name]["outcome"] in ("pass", "warn"), checks[name]
    assert f"pid {node.pid}" in checks["node"]["finding"]
    assert "--address" in checks["address"]["finding"]
    assert "passed, mapped and found sealed" in checks["shared memory"]["finding"]
    assert checks["round trip"]["finding"].startswith("tcp: "), "the TCP door is tried beside the Unix socket"
    assert str(tmp_path / "nvme") in checks["disk speed"]["finding"]
    assert {path.name for path in (tmp_path / "nvme").iterdir() if "doctor" in path.name} == set()


def test_for_people_each_check_is_a_line_and_its_remedy(
    node_process: MakeProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    node = node_process()
    assert main(["doctor", "file:///no/such/thing", "--address", node.address]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "ok    node           node-1, standing" in "\n".join(lines)
    failed = next(number for number, line in enumerate(lines) if line.startswith("FAIL  origin "))
    assert lines[failed + 1].startswith(" " * 21 + "-> ")
    assert lines[-1].endswith(" 1 failed")


def test_without_a_node_nothing_is_wrong_and_none_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = examine(capsys)
    assert code == 0
    assert "your embedded node" in checks["address"]["finding"]
    assert checks["node"]["finding"].startswith("not running")
    assert not Path(os.environ["XDG_RUNTIME_DIR"], "shoal", "node.sock").exists()


def test_a_configured_node_that_does_not_answer(capsys: pytest.CaptureFixture[str], unused_address: str) -> None:
    code, checks = examine(capsys, "s3://bucket/x", "--address", unused_address)
    assert code == 1
    assert checks["node"]["outcome"] == "fail" and unused_address.removeprefix("tcp:") in checks["node"]["finding"]
    assert checks["origin"]["outcome"] == "skip"


def test_the_list_in_shoal_config_is_followed_in_order(
    node_process: MakeProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unused_address: str,
) -> None:
    node = node_process()
    config = tmp_path / "client.json"
    config.write_text(json.dumps({"addresses": [unused_address, node.tcp_address]}))
    monkeypatch.setenv("SHOAL_CONFIG", str(config))
    code, checks = examine(capsys)
    assert code == 0
    assert checks["address"]["outcome"] == "warn"
    assert node.tcp_address in checks["address"]["finding"] and unused_address in checks["address"]["finding"]
    assert "shared memory" not in checks, "TCP passes no descriptors"
    config.write_text('{"adresses": []}')
    code, checks = examine(capsys)
    assert code == 1 and "adresses" in checks["address"]["finding"] and str(config) in checks["address"]["finding"]


def test_a_pod_without_its_volume_is_told_what_to_add(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    code, checks = examine(capsys)
    assert code == 1
    assert "/run/shoal/client.json" in checks["address"]["finding"]
    assert "csi.shoal.dev" in checks["address"]["remedy"] and "volumeMounts" in checks["address"]["remedy"]


def test_an_embedded_node_with_other_credentials(node_process: MakeProcess, capsys: pytest.CaptureFixture[str]) -> None:
    node = node_process({"linger_s": 600}, environment={"AWS_ACCESS_KEY_ID": "somebody"})
    code, checks = examine(capsys, "--address", node.address)
    assert code == 0
    assert checks["credentials"]["outcome"] == "warn" and "shoal stop" in checks["credentials"]["remedy"]
    same = node_process({"linger_s": 600})
    _, checks = examine(capsys, "--address", same.address)
    assert checks["credentials"]["outcome"] == "pass"


@pytest.mark.parametrize(("status", "remedy"), [(403, "credentials"), (503, "endpoint")])
def test_an_origin_that_refuses(
    node_process: MakeProcess,
    http_origin: HttpOrigin,
    capsys: pytest.CaptureFixture[str],
    status: int,
    remedy: str,
) -> None:
    node = node_process()
    url = http_origin.put("/object", b"x")
    http_origin.fail("/object", Fault(status=status, methods=("GET", "HEAD")))
    code, checks = examine(capsys, url, "--address", node.address)
    assert code == 1
    assert checks["origin"]["outcome"] == "fail"
    assert "/object" in checks["origin"]["finding"] and remedy in checks["origin"]["remedy"]


def test_too_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "DESCRIPTORS_WANTED", 1 << 40)
    (check,) = (check for check in host.checks(None) if check.name == "open files")
    assert check.outcome == "warn" and "ulimit -n" in check.remedy


def test_a_budget_that_the_machine_cannot_hold() -> None:
    values = {"pid": os.getpid(), "tiers": {"dram": {"budget_bytes": 1 << 60}}, "segments": []}
    found = {check.name: check for check in host.checks(values)}
    assert found["free memory"].outcome == "warn" and "dram.budget_bytes" in found["free memory"].remedy

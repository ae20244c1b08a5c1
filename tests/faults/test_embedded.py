"""The embedded node: one per user and host, whoever comes first; warm the second time; clear about what is wrong."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from shoal import errors
from shoal.cli import main
from tests.support import waiting
from tests.support.http_origin import HttpOrigin

CONTENT = b"0123456789" * 20_000

READ = """
import sys, json, shoal
with shoal.connect() as client:
    data = client.read(sys.argv[1])
    print(json.dumps([client.node_stats()["pid"], len(data), data[:10].decode(), client.stats().hits]))
"""


@pytest.fixture
def home(embedded_home: Path) -> Path:
    return embedded_home


def refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) != 0


def start_reading(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READ, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


@pytest.mark.timeout(120)
def test_eight_processes_at_once_get_one_node_and_one_read_of_the_origin(home: Path, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/object", CONTENT)
    readers = [start_reading(url) for _ in range(8)]
    outputs = [reader.communicate(timeout=90) for reader in readers]
    assert all(reader.returncode == 0 for reader in readers), outputs
    answers = [json.loads(out) for out, _ in outputs]
    assert len({pid for pid, *_ in answers}) == 1
    assert all(answer[1:3] == [len(CONTENT), "0123456789"] for answer in answers)
    assert http_origin.count("/object") == 1, "one GET for all"
    assert sum("embedded node started" in err for _, err in outputs) == 1, "said by the one who started it"


@pytest.mark.timeout(120)
def test_a_second_run_is_warm_also_when_the_node_has_gone(home: Path, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/object", CONTENT)
    with shoal.connect() as client:
        assert client.read(url) == CONTENT
        first = client.node_stats()["pid"]
    assert main(["stop"]) == 0
    with shoal.connect() as client:
        assert client.node_stats()["pid"] != first
        assert client.read(url) == CONTENT
        assert client.stats().hits["disk"] == 1 and client.stats().hits["origin"] == 0
    assert http_origin.count("/object") == 1


@pytest.mark.timeout(120)
def test_a_node_that_was_killed_is_replaced(home: Path, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/object", CONTENT)
    with shoal.connect() as client:
        client.read(url)
        pid = client.node_stats()["pid"]
        os.kill(pid, signal.SIGKILL)
        assert Path(home, "run", "node.sock").exists(), "its socket is left behind"
        waiting.until(lambda: refuses(Path(home, "run", "node.sock")), "it is gone")
        with shoal.connect() as second:
            assert second.node_stats()["pid"] != pid
            assert second.read(url) == CONTENT
        # The client that was there before comes back by itself.
        assert client.read(url, 1, 5) == CONTENT[1:6]


def test_a_directory_that_others_may_enter_is_refused(home: Path) -> None:
    Path(home, "run").mkdir(mode=0o755)
    Path(home, "run").chmod(0o755)
    with pytest.raises(errors.ConfigError, match=r"run: must belong to this user .* 0700"):
        shoal.connect()


def test_a_wrong_setting_is_named(home: Path) -> None:
    Path(home, "shoal", "node.toml").write_text("dram = {budget_bites = 5}")
    with pytest.raises(errors.ConfigError, match="budget_bites"):
        shoal.connect()
    Path(home, "shoal", "node.toml").write_text("dram = {")
    with pytest.raises(errors.ConfigError, match=r"node\.toml"):
        shoal.connect()


def test_a_plain_file_in_the_sockets_place_is_not_removed(home: Path) -> None:
    Path(home, "run").mkdir(mode=0o700)
    in_the_way = Path(home, "run", "node.sock")
    in_the_way.write_text("mine")
    with pytest.raises(errors.ConfigError, match=r"node\.sock"):
        shoal.connect()
    assert in_the_way.read_text() == "mine"


def test_in_a_pod_the_error_shows_the_volume_to_add(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(errors.ConfigError, match=r"csi\.shoal\.dev") as caught:
        shoal.connect()
    assert "mountPath: /run/shoal" in str(caught.value)
    assert not Path(home, "run").exists(), "nothing was started"


def test_it_is_not_started_where_that_is_forbidden(home: Path) -> None:
    with pytest.raises(errors.ConfigError, match="SHOAL_CONFIG"):
        shoal.connect(embedded=False)
    assert not Path(home, "run").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "client.json"),
        ('{"addresses": []}', "addresses"),
        ('{"addresses": ["http://x"]}', "http://x"),
        ("{}", "addresses"),
    ],
)
def test_a_wrong_client_configuration_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str
) -> None:
    path = tmp_path / "client.json"
    path.write_text(text)
    monkeypatch.setenv("SHOAL_CONFIG", str(path))
    with pytest.raises(errors.ConfigError, match=r"client\.json") as caught:
        shoal.connect()
    assert named in str(caught.value)
    monkeypatch.setenv("SHOAL_CONFIG", str(tmp_path / "absent.json"))
    with pytest.raises(errors.ConfigError, match=r"absent\.json.*No such file"):
        shoal.connect()


@pytest.mark.timeout(120)
def test_other_credentials_than_the_nodes_are_warned_of(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with shoal.connect(), caplog.at_level(logging.WARNING):
        pass
    assert not caplog.records
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    with caplog.at_level(logging.WARNING), shoal.connect():
        pass
    assert len(caplog.records) == 1
    assert "AWS_*" in caplog.text and "shoal stop" in caplog.text
    assert "somebody-else" not in caplog.text


@pytest.mark.timeout(120)
def test_without_its_node_extra_the_error_says_what_to_install(home: Path) -> None:
    # A Python without uvloop, as after `pip install shoal`.
    program = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'uvloop' else find(name, *rest)\n"
        "import shoal; shoal.connect()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0 and "pip install 'shoal[node]'" in ended.stderr


def test_a_socket_that_nobody_answers_is_not_waited_for(home: Path, http_origin: HttpOrigin) -> None:
    Path(home, "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(Path(home, "run", "node.sock")))  # bound, and never listened to: what a crash leaves
    with shoal.connect() as client:
        assert client.read(http_origin.put("/object", CONTENT), 0, 10) == CONTENT[:10]

"""What `helm test` runs in its pod, run here against a real API server and a door like the operator's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.chart.helm import one
from tests.cluster.cluster import Cluster


class Door(ThreadingHTTPServer):
    """Answers every request with one status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/readyz"


class _Answer(BaseHTTPRequestHandler):
    server: Door

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _account(cluster: Cluster, folder: Path) -> Path:
    """What a pod finds of its service account, which nobody gave any right."""
    namespace = cluster.kubectl.namespace()
    (folder / "token").write_text(cluster.kubectl.run("--namespace", namespace, "create", "token", "default"))
    (folder / "ca.crt").write_bytes(cluster.layout.certificate("ca").read_bytes())
    return folder


def _check(cluster: Cluster, account: Path, url: str, patience_s: float) -> subprocess.CompletedProcess[str]:
    container = one("default", "Pod", "shoal-test")["spec"]["containers"][0]
    assert container["command"] == ["python", "-c"]
    script, asked = container["args"]
    assert asked == "http://shoal-operator.shoal-system:8080/readyz"
    environment = {
        "PATH": os.environ["PATH"],
        "KUBERNETES_SERVICE_HOST": cluster.layout.api_address,
        "KUBERNETES_SERVICE_PORT": str(cluster.layout.settings.api_port),
        "SERVICE_ACCOUNT": str(account),
        "PATIENCE_S": str(patience_s),
    }
    argv = (sys.executable, "-c", script, url)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=30)


def test_it_passes_where_all_is_well(installed: Cluster, door: Door, tmp_path: Path) -> None:
    done = _check(installed, _account(installed, tmp_path), door.url, 20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "served: CachePool, Dataset, Preload\noperator: 200\n"


def test_it_fails_where_the_operator_is_not_ready(installed: Cluster, door: Door, tmp_path: Path) -> None:
    door.status = 503
    done = _check(installed, _account(installed, tmp_path), door.url, 0)
    assert done.returncode == 1
    assert "operator_ready: HTTP Error 503" in done.stderr


def test_it_fails_where_nothing_is_installed(empty: Cluster, door: Door, tmp_path: Path) -> None:
    done = _check(empty, _account(empty, tmp_path), door.url, 0)
    assert done.returncode == 1
    assert "kinds_served: HTTP Error 404" in done.stderr

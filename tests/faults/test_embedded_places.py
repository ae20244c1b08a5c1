"""The embedded node where its directories are not what they should be, and starters that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal
from shoal import errors
from shoal.cli import main
from tests.support.http_origin import HttpOrigin

CONTENT = b"0123456789" * 20_000


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """run, cache and config below one directory; a small node, if one is started."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as name:
        directory = Path(name)
        monkeypatch.setenv("SHOAL_RUNTIME_DIR", f"{name}/run")
        monkeypatch.setenv("SHOAL_CACHE_DIR", f"{name}/cache")
        monkeypatch.setenv("XDG_CONFIG_HOME", name)
        (directory / "shoal").mkdir()
        (directory / "shoal" / "node.toml").write_text('dram = {budget_bytes = "64MiB"}\n')
        try:
            yield directory
        finally:
            main(["stop"])


def test_a_file_where_the_runtime_directory_should_be(home: Path) -> None:
    (home / "run").write_text("mine")
    with pytest.raises(errors.ConfigError, match=r"/run: File exists; SHOAL_RUNTIME_DIR"):
        shoal.connect()
    (home / "run").unlink()


def test_a_runtime_directory_that_cannot_be_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_RUNTIME_DIR", "/proc/no/run")
    with pytest.raises(errors.ConfigError, match=r"/proc/no/run: .*SHOAL_RUNTIME_DIR"):
        shoal.connect()
    monkeypatch.setenv("SHOAL_RUNTIME_DIR", f"{home}/run")


@pytest.mark.skipif(os.getuid() != 0, reason="giving a file to another user needs root")
@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_runtime_directory_of_somebody_else(home: Path, kind: str) -> None:
    """Also where it only leads to ours: who owns the link decides tomorrow where it leads."""
    if kind == "directory":
        (home / "run").mkdir(mode=0o700)
        os.chown(home / "run", 65534, 65534)
    else:
        (home / "elsewhere").mkdir(mode=0o700)
        (home / "run").symlink_to(home / "elsewhere")
        os.lchown(home / "run", 65534, 65534)
    with pytest.raises(errors.ConfigError, match="must belong to this user"):
        shoal.connect()
    assert not (home / "elsewhere" / "start.lock").exists()
    os.lchown(home / "run", 0, 0)


@pytest.mark.parametrize("cache", ["file", "/proc/no/cache"])
def test_without_a_cache_directory_there_is_no_disk_tier(
    home: Path, http_origin: HttpOrigin, cache: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A home that cannot be written to is usual in containers: it costs the warm start, not the cache."""
    if cache == "file":
        (home / "cache").write_text("mine")
    else:
        monkeypatch.setenv("SHOAL_CACHE_DIR", cache)
    with shoal.connect() as client:
        url = http_origin.put("/data", CONTENT)
        assert client.read(url) == client.read(url) == CONTENT
        assert "disk" not in client.node_stats()["tiers"]
    assert [record.getMessage() for record in caplog.records if "SHOAL_CACHE_DIR" in record.getMessage()]


def test_a_starter_that_is_killed_leaves_no_trouble(home: Path, http_origin: HttpOrigin) -> None:
    """Whether its node was up or not: those who come next find it or start their own, and there is one in the end."""
    url = http_origin.put("/data", CONTENT)
    program = [sys.executable, "-c", "import shoal; shoal.connect().read('x')"]
    for _ in range(4):
        starter = subprocess.Popen(program, stderr=subprocess.DEVNULL)
        try:
            starter.wait(0.25)
        except subprocess.TimeoutExpired:
            starter.send_signal(signal.SIGKILL)
        starter.wait()
    with shoal.connect() as client, shoal.connect() as second:
        assert client.read(url) == second.read(url) == CONTENT
        assert client.node_stats()["pid"] == second.node_stats()["pid"]
        assert client.stats().hits["direct"] == second.stats().hits["direct"] == 0

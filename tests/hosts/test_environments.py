"""`tools/hosts`: one environment per lock, with this checkout's packages on the path, or a reason why there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hosts import conftest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first run makes an environment


def _hosts(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [conftest.REPOSITORY / "tools" / "hosts", *arguments],
        env={**conftest.TOOLS_ENVIRONMENT, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_it_runs_the_hosts_python_where_one_stands_with_this_checkout(tmp_path: Path) -> None:
    python = conftest.host_python("webdataset")
    show = "import os, sys, webdataset, shoal; print(sys.executable, shoal.__file__, os.getcwd(), sys.argv[1:])"
    done = _hosts("webdataset", "-c", show, "an argument", cwd=tmp_path)
    package = conftest.REPOSITORY / "client" / "shoal" / "__init__.py"
    assert done.stdout.strip() == f"{python} {package} {tmp_path} ['an argument']"


def test_an_unknown_host_is_told_the_known_ones(tmp_path: Path) -> None:
    done = _hosts("nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert {"mosaic", "webdataset"} <= set(done.stderr.strip().rpartition(": ")[2].split(", "))


def test_where_packages_cannot_be_had_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    offline = {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "empty"), "SHOAL_TOOLS_CACHE": str(tmp_path / "tools")}
    done = _hosts("webdataset", cwd=tmp_path, **offline)
    assert done.returncode == 3
    reason = done.stderr.strip().splitlines()[-1]
    assert reason == "the environment of the host library 'webdataset' cannot be made on this machine"
    assert [path.name for path in (tmp_path / "tools" / "hosts").iterdir() if path.is_dir()] == []

"""The archive that krew installs: one file that runs where nothing of ours is installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.plugin.plugin import Plugin

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dist")
    environment = {**os.environ, "URI": "https://example.com/a.tar.gz"}
    subprocess.run([ROOT / "tools" / "plugin-archive", made], check=True, capture_output=True, env=environment)
    return made


def platform(folder: Path) -> dict[str, Any]:
    (found,) = yaml.safe_load((folder / "shoal.yaml").read_text())["spec"]["platforms"]
    return found


def test_the_manifest_fits_the_archive(folder: Path) -> None:
    text = (folder / "shoal.yaml").read_text()
    manifest = yaml.safe_load(text)
    assert "@" not in text and manifest["metadata"]["name"] == "shoal", "the file is called as the plugin is"
    (archive,) = folder.glob("*.tar.gz")
    assert manifest["spec"]["version"] == "v" + archive.name.removeprefix("kubectl-shoal-").removesuffix(".tar.gz")
    found = platform(folder)
    assert found["uri"] == "https://example.com/a.tar.gz"
    assert found["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    with tarfile.open(archive) as opened:
        names = {name.removeprefix("./") for name in opened.getnames()}
    assert {each["from"] for each in found["files"]} <= names and found["bin"] in names


def test_it_runs_without_an_installation(folder: Path, plugin: Plugin, tmp_path: Path) -> None:
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    assert os.access(tmp_path / platform(folder)["bin"], os.X_OK)
    # Isolated and without site packages: what it needs it brings along.
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    environment = {**plugin.environment, "PATH": f"{tmp_path}:{plugin.cluster.kubectl.program.parent}:/usr/bin:/bin"}

    def said(*words: str) -> str:
        command = [plugin.cluster.kubectl.program, "shoal", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert said("--version").startswith("kubectl-shoal ") and "unknown" not in said("--version")
    granted = yaml.safe_load_all(said("grant", "use", "images", "-n", "a", "--to", "b/c"))
    assert [each["kind"] for each in granted] == ["Role", "RoleBinding"]
    assert said("datasets", "-n", "default") == "There is no Dataset in namespace default.\n"

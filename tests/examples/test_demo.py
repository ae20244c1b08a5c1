"""The demonstration: as a user runs it, and in this process for the sources and what is wrong with them."""

import io
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from PIL import Image

from shoal.demo.__main__ import main
from tests.support import running_node
from tests.support.http_origin import HttpOrigin
from tests.support.s3_server import S3Server


class Row(NamedTuple):
    epoch: int
    warmth: str
    shared_memory: int
    tcp: int
    disk: int
    origin: int
    fetched: int


# Epoch and how warm it began; samples/s and GB/s; shared memory, TCP, disk, origin; fetched; waiting.
ROW = re.compile(r"^ *(\d+)(?: (cold|warm|mixed))? +[\d,]+ +\S+" + r" +([\d,]+)" * 5 + r" .* s *$", re.MULTILINE)


def rows(output: str) -> list[Row]:
    found = (match.groups("") for match in ROW.finditer(output))
    return [Row(int(n), warmth, *(int(count.replace(",", "")) for count in counts)) for n, warmth, *counts in found]


def accuracy(output: str) -> float:
    return float(re.search(r"test accuracy ([\d.]+)", output)[1])


# As a user runs it.


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A user of whom nothing is known yet. The embedded node, if one was started, is stopped at the end."""
    with running_node.short_directory() as runtime:
        values = {
            name: value for name, value in os.environ.items() if name not in ("SOURCE", "KUBERNETES_SERVICE_HOST")
        }
        values |= {"XDG_CACHE_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime), "XDG_CONFIG_HOME": str(tmp_path)}
        try:
            yield values
        finally:
            stop(values)


def stop(environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-m", "shoal.cli", "stop"], env=environment, check=True, capture_output=True)


def demo(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "shoal.demo", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_digits_are_learned_cold_then_warm(environment: dict[str, str], tmp_path: Path) -> None:
    first = demo(environment)
    assert "1,797 images in 10 classes" in first
    assert "the cache holds none of them: the first epoch is cold" in first
    assert accuracy(first) > 0.9
    cold, *warm = rows(first)
    assert cold.warmth == "cold"
    assert cold.fetched == 1437  # the first image was looked at before
    assert cold.origin + cold.shared_memory == 1438
    assert [row.epoch for row in warm] == [2, 3, 4, 5, 6]
    assert all(row[1:] == ("", 1438, 0, 0, 0, 0) for row in warm)
    assert len(list((tmp_path / "shoal-demo" / "digits").glob("*/*.png"))) == 1797
    assert re.search(r"^node embedded-\d+, pid \d+, unix:\S+: DRAM .* of .*, disk .* of ", first, re.MULTILINE)
    assert "shoal stop" in first

    second = demo(environment, "--epochs", "1")
    assert "writing" not in second
    assert "the cache holds all of them (1,797 in memory, 0 on disk) from an earlier run" in second
    assert [row[:2] + row[-1:] for row in rows(second)] == [(1, "warm", 0)]


# Sources.


def picture(shade: int, size: tuple[int, int] = (40, 50)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, shade)).save(data, "JPEG")
    return data.getvalue()


def pictures() -> dict[str, bytes]:
    """Bright ones and dark ones, and what else lies in such folders."""
    rng = random.Random(5)
    found = {f"bright/{n:02}.jpg": picture(rng.randrange(200, 256)) for n in range(30)}
    found |= {f"dark/{n:02}.JPG": picture(rng.randrange(0, 56)) for n in range(30)}
    return found | {"README.md": b"about the pictures", "dark/notes.txt": b"more about them"}


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_run_after_the_node_ended_starts_from_its_disk(environment: dict[str, str], tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", pictures())
    assert "the first epoch is cold" in demo(environment, folder, "--epochs", "1")
    stop(environment)
    again = demo(environment, folder, "--epochs", "1")
    assert "the cache holds all of them (0 in memory, 60 on disk) from an earlier run" in again
    (row,) = rows(again)
    assert (row.warmth, row.disk + row.shared_memory, row.origin) == ("warm", 48, 0)


@pytest.fixture
def node(
    node_process: running_node.MakeProcess, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> running_node.NodeProcess:
    """What `shoal.connect()` finds here."""
    started = node_process(environment=s3_server.environment)
    path = tmp_path / "client.json"
    path.write_text(json.dumps({"addresses": [started.address]}))
    monkeypatch.setenv("SHOAL_CONFIG", str(path))
    return started


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = main([*arguments, "--epochs", "40"])
    output = capsys.readouterr()
    assert (status, output.err) == (0, "")
    assert "60 images in 2 classes" in output.out
    assert accuracy(output.out) > 0.9
    assert [row.epoch for row in rows(output.out)] == list(range(1, 41))
    return output.out


def test_a_directory(node: running_node.NodeProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = run(capsys, write(tmp_path / "pictures", pictures()))
    assert "it ends by itself" not in output  # that is said of embedded nodes only


def test_s3_named_by_the_environment(
    node: running_node.NodeProcess,
    s3_server: S3Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, content in pictures().items():
        s3_server.put("pictures", f"set/{name}", content)
    monkeypatch.setenv("SOURCE", "s3://pictures/set")
    run(capsys)
    assert s3_server.gets("pictures") == 60  # each image once, and nothing else


def test_a_manifest_on_a_web_server(
    node: running_node.NodeProcess, http_origin: HttpOrigin, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in pictures().items():
        http_origin.put(f"/set/{name}", content)
    manifest = http_origin.put("/set/manifest.txt", "\n".join([*pictures(), ""]).encode())
    run(capsys, manifest)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    return capsys.readouterr().err


def test_what_is_not_pictures_in_folders_is_named(
    node: running_node.NodeProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "tables", {"a.csv": b"1", "b.csv": b"2", "one/p.png": b"", "readme": b""})
    error = failure(capsys, folder)
    assert f"file://{folder}/: expected images in at least two class folders" in error
    assert "found 4 files (2 .csv, 1 .png, 1 without a suffix), 1 of them images in 1 class folder" in error


def test_sources_that_cannot_be_read(
    node: running_node.NodeProcess, http_origin: HttpOrigin, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert f"{tmp_path}/nothing: no such directory" in failure(capsys, str(tmp_path / "nothing"))
    assert "no-such-bucket" in failure(capsys, "s3://no-such-bucket/set")
    assert "a web server cannot be listed" in failure(capsys, http_origin.url("/set/"))
    assert "missing.txt" in failure(capsys, http_origin.url("/missing.txt"))


def test_an_image_that_is_none_is_named(
    node: running_node.NodeProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "pictures", {**pictures(), "bright/07.jpg": b"not a picture"})
    assert f"file://{folder}/bright/07.jpg" in failure(capsys, folder)
    folder = write(tmp_path / "others", {**pictures(), "bright/00.jpg": b"the first is none"})
    assert f"file://{folder}/bright/00.jpg" in failure(capsys, folder)

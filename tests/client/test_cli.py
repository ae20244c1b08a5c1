"""The `shoal` command over a real node: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.cli import COMMANDS, main, output
from tests.support import running_node
from tests.support.running_node import MakeProcess, NodeProcess

PROGRAM = [sys.executable, "-m", "shoal.cli"]


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    """One for all tests here: each has files of its own, so none sees what another cached."""
    with running_node.short_directory() as directory:
        process = NodeProcess(directory, running_node.configuration(directory, {}), None)
        try:
            process.start()
            yield process
        finally:
            process.kill()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a few objects: large.bin over several blocks, an empty one, two in a folder."""
    folder = tmp_path / "data"
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "large.bin").write_bytes(os.urandom(300_000))
    (folder / "empty").touch()
    (folder / "inner" / "a").write_bytes(b"a" * 1000)
    (folder / "inner" / "deep" / "b").write_bytes(b"b" * 24)
    return folder


Shoal = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shoal(capfd: pytest.CaptureFixture[str]) -> Shoal:
    """Runs the command in this process; (exit code, output, errors)."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


# Usage


def test_help_imports_no_command() -> None:
    """What it costs is `import shoal`, and that brings neither torch nor a web framework, nor what draws tables."""
    program = "import sys, shoal.cli; shoal.cli.main(['--help']); print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)
    imported = set(done.stderr.split())
    assert "shoal.cli" in imported
    heavy = {"torch", "numpy", "pandas", "pyarrow", "fsspec", "fastapi", "uvicorn", "uvloop", "rich", "shoal_node"}
    assert not imported & {*heavy, *(f"shoal.cli.{name}" for name in COMMANDS)}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "bench"])
def test_every_command_explains_itself(shoal: Shoal, command: str) -> None:
    code, printed, errors = shoal(command, "--help")
    assert (code, errors) == (0, "")
    assert printed.startswith(f"usage: shoal {command} ")


def test_version(shoal: Shoal) -> None:
    code, printed, _ = shoal("--version")
    assert code == 0 and printed.startswith("shoal ")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("frobnicate",),
        ("ls",),
        ("ls", "--frobnicate", "file:///"),
        ("cat", "file:///x", "--range", "9-2"),
        ("cat", "file:///x", "--range", "-"),
        ("cat", "file:///x", "--range", "1-²"),
        ("warm", "file:///x", "--concurrency", "0"),
        ("top", "--interval", "0"),
        ("serve",),
    ],
)
def test_wrong_usage_is_2(shoal: Shoal, words: tuple[str, ...]) -> None:
    code, printed, errors = shoal(*words)
    assert (code, printed) == (2, "")
    assert errors.startswith("usage: shoal")


@pytest.mark.parametrize("command", ["ls", "stat", "cat", "warm", "evict"])
def test_a_failure_is_1_and_one_line_that_names_the_url(
    shoal: Shoal, node: NodeProcess, files: Path, command: str
) -> None:
    url = f"file://{files}/nothing-here"
    code, printed, errors = shoal(command, url, "--address", node.address)
    assert (code, printed) == (1, "")
    assert errors.startswith("shoal: ") and url in errors and errors.count("\n") == 1


def test_a_wrong_address_is_named(shoal: Shoal) -> None:
    code, _, errors = shoal("stat", "--address", "pigeon:coop")
    assert code == 1 and "pigeon:coop" in errors


# ls


def rows(printed: str) -> dict[str, list[str]]:
    """Cells by name, of the plain listing: sizes have a unit, percentages a sign."""
    return {line.split()[-1]: line.split()[:-1] for line in printed.splitlines()}


def test_ls_shows_one_level_with_folders_summed_up(shoal: Shoal, node: NodeProcess, files: Path) -> None:
    code, printed, _ = shoal("ls", f"file://{files}", "--address", node.address)
    assert code == 0
    assert rows(printed) == {
        "NAME": ["SIZE", "CACHED", "TIER"],
        "empty": ["0", "B", "-", "-"],
        "inner/": ["1.00", "KiB", "0", "%", "-"],
        "large.bin": ["293", "KiB", "0", "%", "-"],
    }
    shoal("cat", f"file://{files}/inner/a", "--address", node.address)
    _, printed, _ = shoal("ls", f"file://{files}/", "--address", node.address)
    assert rows(printed)["inner/"] == ["1.00", "KiB", "97", "%", "dram"]


def test_ls_columns_are_aligned(shoal: Shoal, node: NodeProcess, files: Path) -> None:
    _, printed, _ = shoal("ls", "-r", f"file://{files}", "--address", node.address)
    header, *lines = printed.splitlines()
    place = header.index("NAME")
    assert sorted(line[place:] for line in lines) == ["empty", "inner/a", "inner/deep/b", "large.bin"]
    assert {line[place - 2 : place] for line in lines} == {"  "}


def test_ls_long_and_json_say_the_same(shoal: Shoal, node: NodeProcess, files: Path) -> None:
    shoal("cat", f"file://{files}/large.bin", "--range", "0-0", "--address", node.address)
    _, printed, _ = shoal("ls", "-lr", f"file://{files}", "--address", node.address)
    long = {line.split()[-1]: line.split() for line in printed.splitlines()[1:]}
    code, printed, _ = shoal("ls", "-r", "--json", f"file://{files}", "--address", node.address)
    assert code == 0
    documents = [json.loads(line) for line in printed.splitlines()]
    assert [document["url"] for document in documents] == sorted(long)
    (large,) = (document for document in documents if document["name"] == "large.bin")
    assert (large["size"], large["dram_bytes"], large["cached_bytes"], large["folder"]) == (
        300_000,
        65_536,
        65_536,
        False,
    )
    assert long[large["url"]][0] == "300000" and large["etag"] in long[large["url"]]


def test_ls_of_one_object(shoal: Shoal, node: NodeProcess, files: Path) -> None:
    _, printed, _ = shoal("ls", f"file://{files}/inner/a", "--address", node.address)
    assert list(rows(printed)) == ["NAME", "a"]


def test_ls_shows_names_as_they_are(shoal: Shoal, node: NodeProcess, tmp_path: Path) -> None:
    (tmp_path / "ü [red]%20#x").write_bytes(b"1")
    _, printed, _ = shoal("ls", f"file://{tmp_path}", "--address", node.address)
    assert printed.endswith("  ü [red]%20#x\n")


def test_names_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.columns(("SIZE", "NAME"), [("1 B", output.printable("x\x1b[2Jy\nz\udc80"))])
    assert capsys.readouterr().out == "SIZE  NAME\n 1 B  x\\x1b[2Jy\\nz\\udc80\n"


def test_a_pipe_that_closes_early_is_no_failure(node: NodeProcess, tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number:0100}").touch()
    listing = subprocess.Popen(
        [*PROGRAM, "ls", f"file://{tmp_path}", "--address", node.address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert listing.stdout is not None and listing.stderr is not None
    with listing:
        assert listing.stdout.readline().endswith(b"NAME\n")
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0


# stat


def test_stat_of_an_object(shoal: Shoal, node: NodeProcess, files: Path) -> None:
    url = f"file://{files}/large.bin"
    shoal("cat", url, "--range", "70000-70000", "--address", node.address)
    code, printed, _ = shoal("stat", url, "--address", node.address)
    values = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in printed.splitlines()}
    assert code == 0
    assert values["url"] == url
    assert values["size"] == "293 KiB (300,000 bytes)"
    assert values["blocks"] == "5 of 64.0 KiB"
    assert values["cached"] == "21 %, 1 blocks"
    _, printed, _ = shoal("stat", url, "--json", "--address", node.address)
    document = json.loads(printed)
    assert document["fingerprint"] == values["fingerprint"] and len(document["fingerprint"]) == 32
    assert (document["blocks"], document["blocks_cached"], document["dram_bytes"]) == (5, 1, 65_536)


def test_stat_of_the_node(shoal: Shoal, node_process: MakeProcess, files: Path) -> None:
    node = node_process()
    for _ in range(2):
        shoal("cat", f"file://{files}/inner/a", "--address", node.address)
    code, printed, _ = shoal("stat", "--address", node.address)
    assert code == 0
    assert f"pid      {node.pid}\n" in printed
    assert "node-1 (standing)" in printed
    assert "of 48.0 MiB" in printed
    assert "50 % of 2 reads (DRAM 50 %, disk 0 %, origin 50 %)" in printed
    assert "memory:" not in printed
    _, printed, _ = shoal("stat", "--json", "--address", node.address)
    values = json.loads(printed)
    assert values["pid"] == node.pid and set(values["tiers"]) == {"dram"} and "default" in values["spaces"]


# cat


def cat(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, "cat", *words], capture_output=True, check=False)


def test_cat_gives_the_bytes(node: NodeProcess, files: Path) -> None:
    for name in ("large.bin", "empty"):
        done = cat(f"file://{files}/{name}", "--address", node.address)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == (files / name).read_bytes()


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("0-0", slice(0, 1)),
        ("65530-65545", slice(65_530, 65_546)),
        ("299999-", slice(299_999, None)),
        ("299990-999999", slice(299_990, None)),
        ("-7", slice(-7, None)),
        ("-999999", slice(0, None)),
        ("-0", slice(0, 0)),
    ],
)
def test_cat_of_a_range(node: NodeProcess, files: Path, asked: str, part: slice) -> None:
    done = cat(f"file://{files}/large.bin", f"--range={asked}", "--address", node.address)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (files / "large.bin").read_bytes()[part]


def test_a_range_that_begins_past_the_end_is_an_error(node: NodeProcess, files: Path) -> None:
    done = cat(f"file://{files}/large.bin", "--range", "300000-", "--address", node.address)
    assert done.returncode == 1 and done.stdout == b""
    assert b"large.bin" in done.stderr and b"300000" in done.stderr


def test_cat_holds_a_few_blocks_not_the_object(node: NodeProcess, tmp_path: Path) -> None:
    size = 256 << 20
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(size)
    reading = subprocess.Popen(
        [*PROGRAM, "cat", f"file://{tmp_path}/huge", "--address", node.address], stdout=subprocess.PIPE
    )
    assert reading.stdout is not None
    seen = most_kib = 0
    with reading.stdout:
        while chunk := reading.stdout.read(1 << 20):
            seen += len(chunk)
            # Not rusage: its maximum includes what this process had when it forked.
            status = Path(f"/proc/{reading.pid}/status").read_text()
            most_kib = int(status.partition("VmHWM:")[2].split()[0]) if "VmHWM:" in status else most_kib
    assert (reading.wait(30), seen) == (0, size)
    # Of which 48 MiB may be the node's own memory, mapped, and 16 MiB is the buffer.
    assert 0 < most_kib * 1024 < 160 << 20


def test_cat_into_a_pipe_that_closes_early_is_quiet(node: NodeProcess, tmp_path: Path) -> None:
    with (tmp_path / "long").open("wb") as long:
        long.truncate(64 << 20)
    reading = subprocess.Popen(
        [*PROGRAM, "cat", f"file://{tmp_path}/long", "--address", node.address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert reading.stdout is not None and reading.stderr is not None
    with reading:
        assert reading.stdout.read(5) == bytes(5)
        reading.stdout.close()
        assert reading.stderr.read() == b""
    assert reading.returncode == 0


# evict, serve


def test_evict_of_an_object_and_of_what_lies_below(shoal: Shoal, node_process: MakeProcess, files: Path) -> None:
    node = node_process()
    for name in ("large.bin", "inner/a", "inner/deep/b"):
        shoal("cat", f"file://{files}/{name}", "--address", node.address)
    code, printed, _ = shoal("evict", f"file://{files}/large.bin", "--address", node.address)
    assert (code, printed) == (0, f"file://{files}/large.bin: 5 blocks dropped\n")
    _, printed, _ = shoal("evict", f"file://{files}/inner", "--json", "--address", node.address)
    assert json.loads(printed) == {"url": f"file://{files}/inner", "blocks": 2}
    _, printed, _ = shoal("ls", "--json", f"file://{files}", "--address", node.address)
    assert {json.loads(line)["cached_bytes"] for line in printed.splitlines()} == {0}


def test_serve_becomes_the_node_and_names_the_field_that_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('node_name = "n"\ndoors = {unix = "/tmp/x"}\n[dram]\nbudget_bites = 1\n')
    done = subprocess.run([*PROGRAM, "serve", "--config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "budget_bites" in done.stderr and str(config) in done.stderr

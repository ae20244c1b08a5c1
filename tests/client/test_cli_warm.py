"""`shoal warm` over a real node: it is done when everything is resident, and says what is not, and why."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from shoal.cli import main, warm
from shoal.objects import ObjectInfo
from shoal_core import limits
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.running_node import MakeProcess


def objects(folder: Path, count: int, size: int) -> str:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}").write_bytes(os.urandom(size))
    return f"file://{folder}"


def cached_share(url: str, address: str, capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    assert main(["ls", "-r", "--json", url, "--address", address]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return sum(each["cached_bytes"] for each in found) / sum(each["size"] for each in found)


def test_everything_is_resident_afterwards_and_a_second_time_costs_nothing(
    node_process: MakeProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = node_process()
    url = objects(tmp_path / "data", 20, 200_000)
    (tmp_path / "data" / "empty").touch()
    assert main(["warm", url, "--address", node.address]) == 0
    assert capsys.readouterr().out.startswith("21 objects, 3.81 MiB: all in the cache; ")
    assert cached_share(url, node.address, capsys) == 1
    before = node.status()["fills"]
    assert main(["warm", url, f"{url}/007", "--address", node.address]) == 0
    assert capsys.readouterr().out == "21 objects, 3.81 MiB: all in the cache already\n"
    assert node.status()["fills"] == before


def test_over_tcp_next_to_nothing_crosses_the_door(
    node_process: MakeProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = node_process({"fill": {"block_size_bytes": "1MiB"}})
    url = objects(tmp_path / "data", 2, 8_000_000)
    assert main(["warm", url, "--address", node.tcp_address]) == 0
    assert cached_share(url, node.address, capsys) == 1
    assert node.status()["read_bytes"]["tcp"]["origin"] == 16, "one byte of each block is asked for"


def test_more_than_dram_goes_to_disk(
    node_process: MakeProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = node_process(
        {
            "dram": {"budget_bytes": "16MiB"},
            "nvme": [{"directory": str(tmp_path / "nvme"), "budget_bytes": "128MiB"}],
        }
    )
    url = objects(tmp_path / "data", 8, 8_000_000)
    assert main(["warm", url, "--address", node.address]) == 0, capsys.readouterr().err
    assert cached_share(url, node.address, capsys) == 1


def test_more_than_the_cache_is_said_before_and_after(
    node_process: MakeProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = node_process()
    url = objects(tmp_path / "data", 10, 8_000_000)
    assert main(["warm", url, "--address", node.address]) == 1
    printed = capsys.readouterr()
    first, *_ = printed.err.splitlines()
    assert first == (
        "shoal: 76.3 MiB asked for, and the cache is smaller (dram 48.0 MiB); what comes first will be evicted again"
    )
    assert re.search(rf"shoal: {url}/00\d: evicted again: 76\.3 MiB asked for", printed.err)
    assert "of 10 objects completely in the cache" in printed.out


def test_one_bad_object_does_not_keep_the_others_out(
    node_process: MakeProcess, http_origin: HttpOrigin, capsys: pytest.CaptureFixture[str]
) -> None:
    node = node_process()
    urls = [http_origin.put(f"/{name}", name.encode() * 1000) for name in "abc"]
    http_origin.fail("/b", Fault(status=403))
    assert main(["warm", *urls, "--json", "--address", node.address]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["objects"], result["missing_objects"]) == (3, 1)
    assert list(result["missing"]) == [urls[1]] and urls[1] in result["missing"][urls[1]]
    assert main(["warm", *urls, "--address", node.address]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"shoal: {urls[1]}: ") and printed.err.count("\n") == 1
    assert printed.out == "2 of 3 objects completely in the cache\n"
    http_origin.heal("/b")
    assert main(["warm", *urls, "--address", node.address]) == 0


def test_batches_are_bounded_in_bytes_and_in_blocks_and_leave_nothing_out() -> None:
    block = 4 * limits.MIB
    infos = [ObjectInfo("a", 10 * block + 1, "", b"", block, "a"), ObjectInfo("none", 0, "", b"", block, "none")]
    infos += [ObjectInfo(f"{n}", 10, "", b"", block, f"{n}") for n in range(2500)]
    found = list(warm.batches(infos, warm.BATCH_BYTES))
    assert all(sum(each.size for each in batch) <= warm.BATCH_BYTES for batch in found)
    assert all(0 < len(batch) <= warm.BATCH_BLOCKS_MAX for batch in found)
    flat = [each for batch in found for each in batch]
    assert sum(each.size for each in flat) == sum(info.size for info in infos)
    assert [each.offset for each in flat[:11]] == [block * n for n in range(11)]
    assert len(flat) == 11 + 2500 and len(found) == 5

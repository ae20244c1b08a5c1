"""kill -9 of a process that writes: each slot then has its old record, its new one, or none, and never other bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal_core import digests
from shoal_node.tiers.nvme import NvmeTier, Record
from tests.node import nvme_writer

REPOSITORY = Path(__file__).resolve().parents[2]


def start(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.node.nvme_writer", str(directory), *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)


def checked_records(tier: NvmeTier) -> list[Record]:
    """All that a recovery finds, each payload compared with its record's checksum."""
    records = [found for found in tier.recover() if isinstance(found, Record)]
    for record in records:
        payload = memoryview(bytearray(record.size))
        tier.read(record.slot, record.size, payload)
        assert digests.checksum(digests.page_digests(payload)) == record.checksum, f"wrong bytes under {record}"
    return records


@pytest.mark.parametrize(
    ("call", "part_bytes", "survives"),
    [
        (0, 0, "old"),  # before the old record is voided
        (0, 16, "none"),  # while it is voided
        (1, 0, "none"),  # before the payload
        (1, 4096, "none"),  # in the middle of the payload
        (1, 196_608, "none"),
        (2, 0, "none"),  # before the new record
        (2, 40, "none"),  # in the middle of it
        (2, 64, "new"),  # behind it
    ],
)
def test_killed_at_every_step_of_one_write(tmp_path: Path, call: int, part_bytes: int, survives: str) -> None:
    process = start(tmp_path, "1", str(call), str(part_bytes))
    process.communicate(timeout=50)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "finished").exists()
    tier = nvme_writer.open_tier(str(tmp_path))
    found = checked_records(tier)
    tier.close()
    seeds = {"old": [1], "new": [2], "none": []}[survives]
    assert found == [nvme_writer.make(0, 199_999 + seed, seed)[0] for seed in seeds]


@pytest.mark.slow
def test_killed_again_and_again_while_three_threads_write(tmp_path: Path) -> None:
    """The kill comes whenever it comes; each round goes on with what the one before left."""
    chance = random.Random(5)
    found = 0
    for round_number in range(20):
        process = start(tmp_path, str(round_number))
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.read(chance.randrange(1, 300))
            process.kill()
        assert process.wait(timeout=50) == -signal.SIGKILL
        tier = nvme_writer.open_tier(str(tmp_path))
        assert tier.remade_because == ""
        found += len(checked_records(tier))
        tier.close()
    assert found > 100

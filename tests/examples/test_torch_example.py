"""The example in plain torch, as users run it: alone, and under torchrun, killed and continued with fewer ranks.

Also its benchmark for GPUs, without one: that every loop of it works.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from PIL import Image

from shoal.demo import digits
from tests.support import waiting
from tests.support.running_node import MakeProcess

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "02-torch"
RUN_TIMEOUT_S = 150
IMAGES, GLOBAL_BATCH = 150, 16

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def environment(node_process: MakeProcess, tmp_path: Path) -> dict[str, str]:
    """What leads `shoal.connect()` to a node of the test's own."""
    node = node_process()
    path = tmp_path / "client.json"
    path.write_text(json.dumps({"addresses": [node.address]}))
    return {**os.environ, "SHOAL_CONFIG": str(path), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Noise in three shades, a class each."""
    rng = random.Random(1)
    for number in range(IMAGES):
        path = tmp_path / "pictures" / ("dark", "grey", "light")[number % 3] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = bytes(rng.randrange(100) + 70 * (number % 3) for _ in range(64))
        Image.frombytes("L", (8, 8), pixels).save(path)
    return str(tmp_path / "pictures")


def command(script: str, *options: str, ranks: int = 0) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    return [sys.executable, *launcher, str(EXAMPLE / script), *options]


def run(arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def training(pictures: str, record: Path, steps: int, *options: str) -> list[str]:
    return [
        pictures, f"--steps={steps}", f"--global-batch-size={GLOBAL_BATCH}", f"--record={record}", "--workers=1",
        *options,
    ]  # fmt: skip


Step = tuple[int, list[int], list[int]]
"""Epoch, positions in it, numbers of the images."""


def recorded(folder: Path) -> list[Step]:
    """The steps that all ranks have written, their shares put together in the order of the ranks."""
    files = [[json.loads(line) for line in whole_lines(path)] for path in sorted(folder.glob("rank-*.jsonl"))]
    steps: list[Step] = []
    for shares in zip(*files, strict=False):
        assert len({epoch for epoch, _, _ in shares}) == 1
        positions = [position for _, part, _ in shares for position in part]
        steps.append((shares[0][0], positions, [image for _, _, part in shares for image in part]))
    return steps


def whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def latest_checkpoint(folder: Path) -> int:
    """The step of the newest complete one; 0 without one."""
    return max((int(path.parent.name.removeprefix("step-")) for path in folder.glob("step-*/.metadata")), default=0)


@pytest.fixture
def killed(environment: dict[str, str], pictures: str, tmp_path: Path) -> Iterator[None]:
    """A run on two ranks, one of which got SIGKILL in the second epoch, some steps after a checkpoint."""
    options = training(
        pictures, tmp_path / "two", 1_000_000, f"--checkpoints={tmp_path / 'checkpoints'}", "--checkpoint-every=4"
    )
    with (tmp_path / "log").open("wb") as log:
        launcher = subprocess.Popen(
            command("train.py", *options, ranks=2), env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:

        def far_enough() -> bool:
            assert launcher.poll() is None, (tmp_path / "log").read_text()[-6000:]
            steps = len(recorded(tmp_path / "two"))
            return latest_checkpoint(tmp_path / "checkpoints") >= 12 and steps % 4 == 2

        waiting.until(far_enough, "a checkpoint, and steps after it", RUN_TIMEOUT_S)
        os.kill(children(launcher.pid)[1], signal.SIGKILL)
        assert launcher.wait(60) != 0, "torchrun says that a rank was killed"
        yield
    finally:
        launcher.terminate()
        launcher.wait(60)


def test_a_killed_run_goes_on_with_one_rank_and_misses_nothing(
    environment: dict[str, str], pictures: str, killed: None, tmp_path: Path
) -> None:
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    before = recorded(tmp_path / "two")
    assert len(before) >= checkpoint >= 12
    steps = checkpoint + IMAGES // GLOBAL_BATCH + 3
    options = training(pictures, tmp_path / "one", steps, f"--checkpoints={tmp_path / 'checkpoints'}")
    shown = run(command("train.py", *options), environment)
    assert f"goes on from {tmp_path}/checkpoints/step-{checkpoint}" in shown
    after = recorded(tmp_path / "one")
    run(command("train.py", *training(pictures, tmp_path / "whole", steps)), environment)
    whole = recorded(tmp_path / "whole")
    assert len(whole) == steps
    assert before[:checkpoint] + after == whole
    # And that is what an epoch ought to be: full steps of different images, in an order that looks like none.
    first = [image for epoch, _, images in whole if epoch == 0 for image in images]
    assert len(first) == len(set(first)) == IMAGES // GLOBAL_BATCH * GLOBAL_BATCH
    assert first != sorted(first)
    assert [position for epoch, positions, _ in whole if epoch == 1 for position in positions][:20] == list(range(20))


def test_digits_are_learned_and_the_table_says_how(environment: dict[str, str]) -> None:
    digits.write(digits.directory())  # named, because clip art stands in for them where it is installed
    shown = run(command("train.py", "--steps=70", str(digits.directory())), environment)
    assert "1,797 images in 10 classes, ranks: 1" in shown
    rows = re.findall(r"^ +(\d) +(\d+) +(\d\.\d+) +[\d,]+ +\d.*$", shown, re.MULTILINE)
    assert [(epoch, steps) for epoch, steps, _ in rows] == [("0", "56"), ("1", "14")]
    assert float(rows[1][2]) < float(rows[0][2])
    assert "The loop " in shown  # why_slow()


def test_the_benchmark_for_gpus_without_one(environment: dict[str, str], tmp_path: Path) -> None:
    shown = run(command("gpu_benchmark.py", "--cpu-smoke", f"--out={tmp_path}"), environment)
    found: dict[str, Any] = json.loads((tmp_path / "gpu_benchmark.json").read_text())
    assert [row["batches"] for row in found["rows"]] == [6] * 6
    assert all(0 <= row["wait_share"] < 1 for row in found["rows"])
    size = float(re.search(r"96 files of ([\d,]+) bytes", shown)[1].replace(",", ""))
    assert 105_000 < size < 115_000

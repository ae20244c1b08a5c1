"""The example that trains TorchTitan's debug Llama 3, as users run it: in the host's environment, on the processor."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.hosts.conftest import host_python
from tests.support.running_node import MakeProcess

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "03-torchtitan"
# Step, digests of the three runs, their losses; a run has neither for steps that it did not do.
ROW = re.compile(r"^ *(\d+)" + r" +([0-9a-f]{12}|-)" * 3 + r" +(\d+\.\d+|-)" * 3 + r" *$", re.MULTILINE)


def run(script: str, *arguments: str, environment: dict[str, str]) -> str:
    faulthandler.cancel_dump_traceback_later()  # minutes are no hang here, and the child has a limit of its own
    done = subprocess.run(
        [host_python("torchtitan"), EXAMPLE / script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_cache_changes_no_bit_and_a_killed_run_goes_on_with_two_ranks(
    node_process: MakeProcess, tmp_path: Path
) -> None:
    node = node_process()
    config = tmp_path / "client.json"
    config.write_text(json.dumps({"addresses": [node.address]}))
    rooms = ("core", "transport", "client", "cache-node")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / room) for room in rooms),
        "SHOAL_CONFIG": str(config),
        "OMP_NUM_THREADS": "1",
    }
    work = str(tmp_path / "work")
    # Some 70 sequences: the runs go into a second epoch.
    options = ("--text", str(REPOSITORY / "docs"), "--limit-bytes", "25000")
    assert "tokenizer of 2000 entries" in run("prepare.py", work, *options, environment=environment)

    printed = run("compare.py", work, "--device", "cpu", environment=environment)
    rows = [match.groups() for match in ROW.finditer(printed)]
    assert [int(number) for number, *_ in rows] == list(range(1, 11)), printed
    for number, files, cache, resumed, files_loss, cache_loss, resumed_loss in rows:
        assert {files, cache, resumed} - {"-"} == {files}
        if int(number) <= 6:
            assert cache_loss == files_loss
        if int(number) > 4:
            assert resumed == files
            # Two ranks add up in another order, no more.
            assert float(resumed_loss) == pytest.approx(float(files_loss), rel=1e-3)
    assert float(rows[-1][4]) < float(rows[0][4])
    # The text came through the node, once, and so did the tokens that are kept there.
    text_bytes = sum(file.stat().st_size for file in (Path(work) / "text").iterdir())
    assert node.status()["fill_bytes"] == text_bytes

"""The loader in real process groups (gloo, one process a rank) and its state in real distributed checkpoints."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LAUNCHER = """
# Imports once what a rank takes seconds to import, and forks the ranks.
import datetime, json, os, sys, traceback
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from shoal import errors
from shoal.torch import DataLoader

def live(rank, world_size, folder, body):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    def write(**found):
        with open(f"{folder}/{rank}.json", "w") as file:
            json.dump(found, file)
    exec(body, globals() | {"rank": rank, "world_size": world_size, "write": write})
    dist.destroy_process_group()

for line in sys.stdin:
    world_size, folder, body = json.loads(line)
    children = []
    for rank in range(world_size):
        if not (child := os.fork()):
            status = 1
            try:
                live(rank, world_size, folder, body)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""

Run = Callable[[Path, int, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a program on so many ranks; what each of them wrote."""
    errors = tmp_path_factory.mktemp("launcher") / "errors"
    with errors.open("w") as stderr:
        launcher = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    assert launcher.stdin is not None and launcher.stdout is not None

    def on_ranks(folder: Path, world_size: int, body: str) -> list[dict[str, Any]]:
        folder.mkdir(exist_ok=True)
        launcher.stdin.write(json.dumps([world_size, str(folder), body]) + "\n")
        launcher.stdin.flush()
        assert json.loads(launcher.stdout.readline()) == [0] * world_size, errors.read_text()
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]

    yield on_ranks
    launcher.stdin.close()
    assert launcher.wait(30) == 0
    launcher.stdout.close()


def test_torch_distributed_says_the_rank_and_a_mesh_dimension_wins(run: Run, tmp_path: Path) -> None:
    found = run(
        tmp_path,
        4,
        """
def items(**options):
    return [batch.tolist() for batch in DataLoader(range(16), 2, shuffle=True, **options)]

mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
plain, parallel, single = items(), items(process_group=mesh["dp"]), items(rank=0, world_size=1)
group = items(process_group=mesh.get_group("dp"))
refused = ""
try:
    items(process_group=mesh)
except errors.BadRequest as error:
    refused = str(error)
write(plain=plain, parallel=parallel, group=group, single=single, refused=refused)
""",
    )
    whole = [number for batch in found[0]["single"] for number in batch]
    assert sorted(whole) == list(range(16))
    assert [n for step in range(2) for rank in found for n in rank["plain"][step]] == whole
    # Ranks 0 and 1 are peers in 'tp', as are 2 and 3: the same samples.
    assert found[0]["parallel"] == found[1]["parallel"] and found[2]["parallel"] == found[3]["parallel"]
    assert [n for step in range(4) for rank in (0, 2) for n in found[rank]["parallel"][step]] == whole
    assert all(rank["group"] == rank["parallel"] for rank in found)
    assert all("mesh of 2 dimensions" in rank["refused"] and "mesh['dp']" in rank["refused"] for rank in found)


def test_an_uneven_end_raises_on_every_rank_at_once(run: Run, tmp_path: Path) -> None:
    found = run(
        tmp_path,
        3,
        """
refused = ""
try:
    iter(DataLoader(range(13), 2))
except errors.BadRequest as error:
    refused = str(error)
samples = [(number,) for number in range(13)]
counts = [len(list(DataLoader(samples, 2, **end))) for end in ({"drop_last": True}, {"pad_last": True})]
write(refused=refused, counts=counts)
""",
    )
    assert all("drop_last=True, or pad_last=True" in rank["refused"] for rank in found)
    assert [rank["counts"] for rank in found] == [[2, 3]] * 3


def test_a_distributed_checkpoint_resumes_on_other_numbers_of_ranks(run: Run, tmp_path: Path) -> None:
    """3 ranks for two steps, 2 for two more, 4 to the end: together one rank's stream, through real DCP."""
    body = """
loader = DataLoader(range(52), shuffle=True, global_batch_size=6, rank=rank, world_size=world_size)
if {load!r}:
    dcp.load({{"loader": loader}}, checkpoint_id={load!r})
seen, before = [], loader.state_dict()
batches = iter(loader)
for number in range({steps}):
    batch = next(batches, None)
    seen.append(batch.tolist() if batch is not None else [])
state = loader.state_dict()
if {save!r}:
    dcp.save({{"loader": loader}}, checkpoint_id={save!r})
write(seen=seen, before=before, state=state)
"""
    places = ["", str(tmp_path / "one"), str(tmp_path / "two"), ""]
    seen: list[int] = []
    for number, (world_size, steps) in enumerate([(3, 2), (2, 2), (4, 9)]):
        filled = body.format(load=places[number], save=places[number + 1], steps=steps)
        found = run(tmp_path / f"run-{number}", world_size, filled)
        assert all(rank["before"] == found[0]["before"] for rank in found)
        assert found[0]["before"]["position"] == len(seen)
        if number < 2:
            assert all(rank["state"] == found[0]["state"] for rank in found)
        seen += [item for step in range(steps) for rank in found for item in rank["seen"][step]]
    from shoal.torch import DataLoader

    assert seen == [number for batch in DataLoader(range(52), shuffle=True, batch_size=1) for number in batch.tolist()]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_another_stream_is_refused(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    from shoal import errors
    from shoal.torch import DataLoader

    checkpoint = str(tmp_path / "checkpoint")
    loader = DataLoader(range(20), 2, shuffle=True)
    next(iter(loader))
    dcp.save({"loader": loader}, checkpoint_id=checkpoint, no_dist=True)
    other = DataLoader(range(21), 2, shuffle=True)
    with pytest.raises(errors.BadRequest, match="items: 21 here, 20 in the state"):
        dcp.load({"loader": other}, checkpoint_id=checkpoint, no_dist=True)
    same = DataLoader(range(20), 2, shuffle=True)
    dcp.load({"loader": same}, checkpoint_id=checkpoint, no_dist=True)
    assert same.state_dict() == loader.state_dict()

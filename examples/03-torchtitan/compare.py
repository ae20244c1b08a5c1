"""Trains the debug Llama 3 three times on the same text, and compares to the last bit.

1. files:   one rank, read from plain files, without Shoal
2. cache:   one rank, read through the cache; killed (SIGKILL) some steps after a checkpoint
3. resumed: from that checkpoint, on another number of ranks

Prints a table of every step, the digest of its sequences and its loss; ends with an error where losses of 1 and 2, or
sequences of any two runs differ. Where there are fewer GPUs than ranks, run 3 goes on with one rank, and what the ranks
would read is read from the checkpoint without training.
"""

# ruff: noqa: T201 - what it prints is for a person
from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import devices
import torch

HERE = Path(__file__).resolve().parent
SEQUENCES, SAVED_AT, KILLED_AT, STEPS = 8, 4, 6, 10
"""Sequences of a step over all ranks, and the steps at which something happens."""
RUN_TIMEOUT_S = 900.0


class Step(NamedTuple):
    sequences: tuple[str, ...]
    """Digests, in the order of the stream."""
    loss: str | None


def ranks(given: argparse.Namespace, name: str, count: int, *options: str) -> list[subprocess.Popen[bytes]]:
    """Starts a training run of `count` ranks, writing to work/name."""
    output = given.work / name
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable, str(HERE / "train.py"), "--text", given.text,
        "--tokenizer", str(given.work / "tokenizer"), "--output", str(output), "--device", given.device,
        "--steps", str(STEPS), "--global-batch", str(SEQUENCES), "--sequence-length", str(given.sequence_length),
        *options,
    ]  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with (output / f"rank-{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return processes


@contextlib.contextmanager
def ended(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait(given: argparse.Namespace, name: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Until all ranks are done; the log of one that failed, as an error."""
    deadline = time.monotonic() + RUN_TIMEOUT_S
    with ended(processes):
        for rank, process in enumerate(processes):
            if process.wait(max(0.0, deadline - time.monotonic())):
                log = given.work / name / f"rank-{rank}.log"
                sys.exit(f"run '{name}', rank {rank} failed:\n{log.read_text(errors='replace')[-6000:]}")


def kill_at(given: argparse.Namespace, name: str, processes: list[subprocess.Popen[bytes]], step: int) -> None:
    """SIGKILL once that step's loss is written."""
    deadline = time.monotonic() + RUN_TIMEOUT_S
    with ended(processes):
        while not (steps := read(given, name, 1)) or max(steps) < step or steps[step].loss is None:
            if processes[0].poll() is not None or time.monotonic() > deadline:
                log = given.work / name / "rank-0.log"
                sys.exit(f"run '{name}' did not come to step {step}:\n{log.read_text(errors='replace')[-6000:]}")
            time.sleep(0.05)
        processes[0].send_signal(signal.SIGKILL)


def read(given: argparse.Namespace, name: str, count: int) -> dict[int, Step]:
    """What a run recorded: its passes in order, and in each the ranks in order, are the order of the stream."""
    passes: dict[int, list[list[list[str]]]] = {}
    losses: dict[int, str] = {}
    for rank in range(count):
        file = given.work / name / f"rank-{rank}.jsonl"
        for line in file.read_text().splitlines(keepends=True) if file.exists() else ():
            if not line.endswith("\n"):
                break  # being written
            values = json.loads(line)
            if "sequences" in values:
                passes.setdefault(values["step"], [[] for _ in range(count)])[rank].append(values["sequences"])
            elif rank == 0:
                losses[values["step"]] = values["loss"]
    return {
        step: Step(
            tuple(digest for parts in zip(*of_ranks, strict=False) for part in parts for digest in part),
            losses.get(step),
        )
        for step, of_ranks in passes.items()
    }


def digest(step: Step | None) -> str:
    if step is None:
        return "-"
    return hashlib.blake2b("".join(step.sequences).encode(), digest_size=6).hexdigest()


def loss(step: Step | None) -> str:
    return "-" if step is None or step.loss is None else f"{float.fromhex(step.loss):.9f}"


def compare(runs: dict[str, dict[int, Step]]) -> list[str]:
    """Prints the table; what is wrong, in words."""
    wrong: list[str] = []
    names = list(runs)
    print(
        f"{'step':>4}  " + "  ".join(f"{name:<12}" for name in names) + "  " + "  ".join(f"loss {n:<11}" for n in names)
    )
    for number in range(1, STEPS + 1):
        steps = {name: run.get(number) for name, run in runs.items()}
        print(
            f"{number:>4}  "
            + "  ".join(f"{digest(step):<12}" for step in steps.values())
            + "  "
            + "  ".join(f"{loss(step):<16}" for step in steps.values())
        )
        if len({step.sequences for step in steps.values() if step}) != 1:
            wrong.append(f"step {number}: the runs got different sequences")
        files, cache = steps["files"], steps["cache"]
        if files and cache and cache.loss and files.loss != cache.loss:
            wrong.append(f"step {number}: loss {files.loss} from files, {cache.loss} through the cache")
    for name, first, last in (("files", 1, STEPS), ("cache", 1, KILLED_AT), ("resumed", SAVED_AT + 1, STEPS)):
        if missing := [number for number in range(first, last + 1) if number not in runs[name]]:
            wrong.append(f"run '{name}' has no step {missing[0]}")
    return wrong


def stream_of(given: argparse.Namespace, checkpoint: Path, count: int) -> dict[int, Step]:
    """What `count` ranks would get after the checkpoint: loaders without a model, loaded by torch's DCP."""
    devices.use(given.device)
    import train
    from torch.distributed import checkpoint as dcp
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    from shoal.torchtitan import ShoalDataLoader

    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(given.work / "tokenizer"))
    per_rank: list[list[list[str]]] = []
    for rank in range(count):
        loader = ShoalDataLoader.Config(dataset=given.text).build(
            dp_rank=rank,
            dp_world_size=count,
            tokenizer=tokenizer,
            seq_len=given.sequence_length,
            local_batch_size=SEQUENCES // count,
        )
        dcp.load({"dataloader": loader}, checkpoint_id=str(checkpoint))
        batches = iter(loader)
        per_rank.append([train.digests(*next(batches)) for _ in range(SAVED_AT, STEPS)])
    return {
        SAVED_AT + 1 + number: Step(tuple(digest for part in parts for digest in part), None)
        for number, parts in enumerate(zip(*per_rank, strict=True))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="what prepare.py wrote, and where the runs go")
    parser.add_argument("--text", help="URL of the folder of texts for the cache (default: work/text); the same files")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ranks", type=int, default=2, help="of the resumed run")
    parser.add_argument("--sequence-length", type=int, default=2048 if torch.cuda.is_available() else 128)
    given = parser.parse_args()
    given.work = given.work.absolute()
    given.text = given.text or (given.work / "text").as_uri()
    checkpoints = given.work / "checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)

    files = ("--files", str(given.work / "text"))
    wait(given, "files", ranks(given, "files", 1, *files, "--local-batch", str(SEQUENCES)))
    saving = ("--checkpoints", str(checkpoints), "--save-every", str(SAVED_AT))
    kill_at(given, "cache", ranks(given, "cache", 1, *saving, "--local-batch", str(SEQUENCES)), KILLED_AT)
    # Half the sequences at a time and twice as often: what fits where there are more ranks or less memory.
    count = given.ranks if given.device == "cpu" else min(given.ranks, torch.cuda.device_count())
    wait(given, "resumed", ranks(given, "resumed", count, *saving, "--local-batch", str(SEQUENCES // 2 // count)))

    runs = {
        "files": read(given, "files", 1),
        "cache": read(given, "cache", 1),
        "resumed": read(given, "resumed", count),
    }
    if count < given.ranks:
        runs[f"{given.ranks} ranks"] = stream_of(given, checkpoints / f"step-{SAVED_AT}", given.ranks)
    print(f"device {given.device}; resumed on {count} rank{'s' if count > 1 else ''} after step {SAVED_AT}")
    wrong = compare(runs)
    if wrong:
        sys.exit("\n".join(wrong))
    print(
        "every step has the same sequences in all runs, and the same loss, to the last bit, with the cache as without"
    )


if __name__ == "__main__":
    main()

"""One rank of a training run of TorchTitan's debug Llama 3; start it with torchrun, or as compare.py does.

Beside TorchTitan's own output, writes OUTPUT/rank-N.jsonl: which sequences this rank got in which step, and the loss,
in hexadecimal, so that runs can be compared to the last bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import devices


def digests(inputs: dict[str, Any], labels: Any) -> list[str]:
    """Of each sequence in a batch: tokens, positions and labels."""
    rows = zip(*(value.numpy() for value in inputs.values()), labels.numpy(), strict=True)
    return [hashlib.blake2b(b"".join(part.tobytes() for part in row), digest_size=8).hexdigest() for row in rows]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="URL of a folder of texts")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, help="where to save, and to resume from")
    parser.add_argument("--files", help="read the same files from this folder, without the cache")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--local-batch", type=int, required=True, help="sequences per rank and pass")
    parser.add_argument("--global-batch", type=int, required=True, help="sequences per step over all ranks")
    return parser.parse_args()


def configured(given: argparse.Namespace) -> Any:
    """The debug configuration of shoal.torchtitan, with what the command line says."""
    from plain_files import PlainFilesDataLoader
    from torchtitan.components.loss import CrossEntropyLoss
    from torchtitan.models.common.config_utils import decoder_vocab_size

    from shoal.torchtitan.config_registry import llama3_debugmodel

    config = llama3_debugmodel()
    if given.files:
        config.dataloader = PlainFilesDataLoader.Config(folder=given.files)
    config.dataloader.dataset = given.text
    config.hf_assets_path = given.tokenizer
    config.training.steps = given.steps
    config.training.seq_len = given.sequence_length
    config.training.local_batch_size = given.local_batch
    config.training.global_batch_size = given.global_batch
    # The loss in chunks, which the debug model has by default, needs a newer torch than others of its parts.
    config.loss = CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(config.model_spec))
    config.dump_folder = str(given.output)
    if given.checkpoints:
        config.checkpoint.enable = True
        config.checkpoint.folder = str(given.checkpoints.absolute())
        config.checkpoint.interval = given.save_every
    devices.adapt(config, given.device)
    return config


def record(trainer: Any, out: TextIO) -> None:
    """From now on each batch and each loss goes to `out`, at once: a run that is killed has written what it saw."""

    def line(**values: Any) -> None:
        out.write(json.dumps({"step": trainer.step, **values}) + "\n")
        out.flush()

    batches, log = trainer.batch_generator, trainer.metrics_processor.log

    def recorded(loader: Any) -> Iterator[Any]:
        for inputs, labels in batches(loader):
            line(sequences=digests(inputs, labels))
            yield inputs, labels

    def logged(step: int, loss: float, *others: Any, **more: Any) -> None:
        line(loss=float(loss).hex())
        log(step, loss, *others, **more)

    trainer.batch_generator, trainer.metrics_processor.log = recorded, logged


def main() -> None:
    given = arguments()
    devices.use(given.device)
    from torch import distributed
    from torchtitan.tools.logging import init_logger

    init_logger()
    given.output.mkdir(parents=True, exist_ok=True)
    trainer = configured(given).build()
    devices.adapt_built(trainer, given.device)
    with (given.output / f"rank-{os.environ['RANK']}.jsonl").open("w") as out:
        record(trainer, out)
        trainer.train()
        trainer.close()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

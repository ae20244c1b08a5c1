"""A data loader for TorchTitan whose state survives another data-parallel degree.

TorchTitan builds it from `ShoalDataLoader.Config` and asks for batches of its sequence length. Tokens come from the
cache (`shoal.torch.Dataset`, format `tokens`), packed into full sequences (`packing`), in an order that is defined
without ranks (`shoal.torch.DataLoader`). Epochs follow each other without a seam: the batch at the end of one is filled
from the beginning of the next, so no token is left out, and where an epoch ends does not depend on batch size or ranks.
The state is one position in that stream, equal on every rank, which is what a distributed checkpoint keeps of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torchtitan.components.dataloader import BaseDataLoader  # pyright: ignore[reportMissingImports] - its users have it

from shoal.torch import BlockShuffle, DataLoader, Dataset, Tokenizer
from shoal.torchtitan import packing
from shoal.torchtitan import tokenizer as tokenizers
from shoal_core.errors import BadRequest


class ShoalDataLoader(BaseDataLoader):
    """Yields ({input, positions}, labels), int64 [local_batch_size, seq_len] each; ranks get parts of one stream."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """`dataset` is the URL of a folder: s3://bucket/text, gs://..., /mnt/text, or shoal://name."""

        content: Literal["text", "uint16", "uint32"] = "text"
        """What the files hold: text, which is tokenised once and kept in the cache, or little-endian token ids."""

        text_field: str = "text"
        """Where the text is in a line of a .jsonl file. Any other file is one document."""

        document_end: int | None = None
        """In files of tokens: the token that ends a document. None: the tokenizer's end of sequence."""

        tokenizer_name: str | None = None
        """Names the tokenizer, for the tokens that are kept. None: the digest of its files."""

        suffixes: list[str] | None = None
        """Only files whose names end so. None: all files of text, .bin files of tokens."""

        shuffle: Literal["full", "blocks", "none"] = "full"
        """Order of an epoch: any order of all sequences; blocks of neighbouring ones, so that reads stay nearly
        sequential; or as they lie in the files."""

        seed: int = 0
        """Of the order."""

        infinite: bool = True
        """Go on with the next epoch, for ever. Otherwise one epoch, without the rest that fills no batch."""

        num_workers: int = 0
        persistent_workers: bool = False
        prefetch_factor: int | None = None
        pin_memory: bool = False

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        tokenizer: Any,
        seq_len: int,
        local_batch_size: int,
        **_: Any,
    ) -> None:
        self._infinite = config.infinite
        self._rank, self._batch_size, self._step = dp_rank, local_batch_size, local_batch_size * dp_world_size
        self._dataset = _dataset(config, tokenizer, seq_len)
        shuffle: dict[str, bool | BlockShuffle] = {"full": True, "blocks": BlockShuffle(), "none": False}
        workers = config.num_workers > 0
        self.loader = DataLoader(
            self._dataset,
            local_batch_size,
            shuffle[config.shuffle],
            num_workers=config.num_workers,
            collate_fn=packing.batch,
            pin_memory=config.pin_memory,
            drop_last=True,
            persistent_workers=workers and config.persistent_workers,
            prefetch_factor=config.prefetch_factor if workers else None,
            seed=config.seed,
            rank=dp_rank,
            world_size=dp_world_size,
        )
        """What the batches come from, for its `stats()` and `why_slow()`."""

    def __iter__(self) -> Iterator[packing.Batch]:
        count = len(self._dataset)
        while True:
            begin = self.loader.state_dict()["position"]
            yield from self.loader
            if not self._infinite:
                return
            seam = begin + (count - begin) // self._step * self._step
            if seam < count:
                yield self._across(self.loader.epoch - 1, seam)

    def state_dict(self) -> dict[str, Any]:
        """{version, digest, seed, epoch, position}, equal on every rank; position counts sequences."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where that state was taken, by however many ranks. BadRequest names what differs."""
        if state_dict:  # TorchTitan hands an empty one to a loader without a past
            self.loader.load_state_dict(state_dict)

    def _across(self, epoch: int, seam: int) -> packing.Batch:
        """Our part of the step from `seam` of an epoch into the next; the loader goes on behind it."""
        count = len(self._dataset)
        first = seam + self._rank * self._batch_size
        places = [divmod(place, count) for place in range(first, first + self._batch_size)]
        items = [self.loader.order(epoch + later).items(position) for later, position in places]
        batch = packing.batch(self._dataset.__getitems__(items))
        later, position = divmod(seam + self._step, count)
        self.loader.load_state_dict({**self.loader.state_dict(), "epoch": epoch + later, "position": position})
        return batch


def _dataset(config: ShoalDataLoader.Config, tokenizer: Any, seq_len: int) -> Dataset:
    if not config.dataset:
        raise BadRequest("dataloader.dataset: no URL is given; such as --dataloader.dataset s3://bucket/text")
    if config.dataset_path:
        raise BadRequest(f"dataloader.dataset_path={config.dataset_path}: give the URL as dataloader.dataset")
    options: dict[str, Any]
    if config.content == "text":
        name = tokenizers.identity(tokenizer, config.tokenizer_name)
        encode = tokenizers.DocumentEncoder(tokenizer)
        options = {"tokenizer": Tokenizer(encode, name), "text_field": config.text_field}
    else:
        end = tokenizer.eos_id if config.document_end is None else config.document_end
        options = {"dtype": config.content} | ({} if end is None else {"end": end})
    return Dataset(
        config.dataset,
        format="tokens",
        suffixes=config.suffixes,
        sequence_length=seq_len,
        positions=True,
        **options,
    )

"""The reading to compare with: the same sequences, out of plain files, by `open` and nothing else.

Says in forty lines what the stream is. Only the order of the sequences is taken from Shoal's loader.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torchtitan.components.dataloader import BaseDataLoader

from shoal.torchtitan import ShoalDataLoader, packing


class PlainFilesDataLoader(BaseDataLoader):
    """On one rank."""

    @dataclass(kw_only=True, slots=True)
    class Config(ShoalDataLoader.Config):
        folder: str = ""
        """The same files as below `dataset`, here."""

    def __init__(self, config: Config, *, tokenizer: Any, seq_len: int, local_batch_size: int, **others: Any) -> None:
        asked = {"tokenizer": tokenizer, "seq_len": seq_len, "local_batch_size": local_batch_size}
        options = {field.name: getattr(config, field.name) for field in fields(ShoalDataLoader.Config)}
        self._order_of = ShoalDataLoader.Config(**options).build(**asked, **others).loader.order
        self._seq_len, self._batch_size = seq_len, local_batch_size
        tokens: list[int] = []
        positions: list[int] = []
        for path in sorted(Path(config.folder).iterdir(), key=lambda path: path.name.encode()):
            document = tokenizer.encode(path.read_text("utf-8"), add_bos=True, add_eos=True)
            tokens += document
            positions += range(len(document))
        self._tokens, self._positions = torch.tensor(tokens), torch.tensor(positions)

    def __iter__(self) -> Iterator[packing.Batch]:
        count = (len(self._tokens) - 1) // self._seq_len
        for start in itertools.count(0, self._batch_size):
            places = [divmod(place, count) for place in range(start, start + self._batch_size)]
            yield packing.batch([self._sample(self._order_of(epoch).items(position)) for epoch, position in places])

    def _sample(self, item: int) -> dict[str, torch.Tensor]:
        begin = item * self._seq_len
        window = slice(begin, begin + self._seq_len + 1)
        return {"tokens": self._tokens[window], "positions": self._positions[window]}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError("this loader has no state: it is here to be compared with")

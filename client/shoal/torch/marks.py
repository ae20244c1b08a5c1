"""What the loader adds to a batch of its own: `index` and `position` of each sample, and which samples are `valid`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from shoal.torch.sharding import Step
from shoal_core.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Marks:
    """Which of them are wanted."""

    index: bool
    valid: bool
    single: bool
    """Batches are single samples, and get plain numbers instead of tensors."""

    @staticmethod
    def check(index: bool, iterable: bool, in_order: bool) -> None:
        if index and (iterable or not in_order):
            raise BadRequest("with_index: an iterable data set, or in_order=False, does not say which sample is which")

    def add(self, batch: Any, step: Step) -> Any:
        """The batch with int64 [batch] index and position and bool [batch] valid, as far as wanted.

        They are keys of a dict, further elements of a tuple or list; BadRequest for a batch of any other type.
        """
        new: dict[str, list[Any]] = {}
        if self.index:
            new |= {"index": step.items, "position": step.positions}
        if self.valid:
            new["valid"] = step.valid
        if not new:
            return batch
        values = {name: many[0] if self.single else torch.tensor(many) for name, many in new.items()}
        if isinstance(batch, dict):
            taken = [name for name in values if name in batch]
            if taken:
                raise BadRequest(f"with_index, pad_last: samples have a field {taken[0]!r} of their own")
            return {**batch, **values}
        if type(batch) in (tuple, list):
            return type(batch)((*batch, *values.values()))
        raise BadRequest(
            f"with_index, pad_last: a batch of type {type(batch).__name__} takes no field {next(iter(values))!r}; "
            "let samples, or collate_fn, make dicts or tuples"
        )

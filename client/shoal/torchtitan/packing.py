"""Windows of a token stream as TorchTitan's models take them: inputs, positions and labels. Pure.

A window has one token more than the sequence, so that each input has the next token as its label. Documents lie in it
end to end. As in TorchTitan's own loader, no document is taught to begin another: the label at a document's last token
is ignored. Positions count from the beginning of a document, or of the window for one that began before it, so they
stay below the sequence length, whatever the length of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

IGNORE_INDEX = -100
"""TorchTitan's, and the default of torch's cross entropy."""

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


def batch(samples: Sequence[dict[str, Any]]) -> Batch:
    """({input, positions}, labels), int64 [batch, sequence] each; samples have int64 [sequence + 1] `tokens` and,
    where documents are known, `positions`."""
    tokens = torch.stack([sample["tokens"] for sample in samples])
    # Labels in memory of their own: some of them are about to be ignored, and inputs are not.
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    if "positions" not in samples[0]:
        return {"input": inputs}, labels
    positions = torch.stack([sample["positions"] for sample in samples])
    labels[positions[:, 1:] == 0] = IGNORE_INDEX
    return {"input": inputs, "positions": _from_window(positions[:, :-1])}, labels


def _from_window(positions: torch.Tensor) -> torch.Tensor:
    """Positions of a document that began before the window count from the window's beginning."""
    begun_before = (positions == 0).cumsum(1) == 0
    return positions - positions[:, :1] * begun_before

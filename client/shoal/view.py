"""Zero-copy reads, made explicit: memory that belongs to the node, lent for as long as anybody looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from shoal_core.errors import BadRequest


class View:
    """A range of an object as read-only memory, one part per block. Use it in a `with` block.

    The lease of a part ends when the last slice, array or tensor over it is gone, which may be after the `with` block;
    leaving the block drops this object's own references and, where nobody else looks, ends the leases. Where the client
    may hold no more leases, or the bytes did not come over shared memory, a part is a copy: `zero_copy` says so. Leases
    are the process's: a forked child may look at a view for as long as its parent keeps it.
    """

    __slots__ = ("_parts", "url", "zero_copy")

    def __init__(self, url: str, parts: list[memoryview], zero_copy: bool) -> None:
        self.url = url
        self._parts = parts
        self.zero_copy = zero_copy
        """Whether every part lies in shared memory."""

    @property
    def parts(self) -> list[memoryview]:
        """Read-only memoryviews of bytes, one per block, in order."""
        return self._parts

    @property
    def memory(self) -> memoryview:
        """The range as one memoryview. BadRequest if it crosses a block's boundary: then use `parts`."""
        if len(self._parts) == 1:
            return self._parts[0]
        if not self._parts:
            return memoryview(b"")
        raise BadRequest(f"{self.url}: the range lies in {len(self._parts)} blocks; use .parts, or read() for a copy")

    def numpy(self) -> Any:
        """The range as a read-only numpy array of uint8, without a copy."""
        import numpy as np

        return np.frombuffer(self.memory, dtype=np.uint8)

    def torch_readonly(self) -> Any:
        """The range as a torch tensor of uint8, without a copy. Never write to it.

        torch knows no read-only tensors, and an in-place operation on this one ends the process with SIGSEGV.
        """
        import warnings

        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "not writable" is what the name of this method says
            return torch.frombuffer(self.memory, dtype=torch.uint8)

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._parts)

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop this object's references. Closing twice is fine."""
        self._parts = []

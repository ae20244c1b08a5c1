"""A batch as memory that the cache lends: ranges of objects without a copy, until somebody asks for one.

`read_views` leases a batch with one request. In the process that read it, a `Views` is views; pickled, as a worker's
batch is on its way to the training process, it is references (`references`), and the receiver takes leases of its own,
again with one request, when it first looks. So bytes cross no queue, and nothing is left behind by a worker that dies:
its leases end with its sockets. A worker keeps the leases of the last batches it sent, so that a block which the node
would not keep otherwise is still there when the training process asks. Bytes that are no shared memory (a node reached
over TCP, the limit of leases) travel as one piece of shared memory instead: reading them twice would cost more. Where
there is none (no descriptor is left), only the references travel, and the receiver reads those too.

Tensors are writable copies unless the method's name says `readonly`. The way to a GPU is in `device`.
"""

from __future__ import annotations

import logging
import mmap
import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.data

from shoal import lending, shared_client
from shoal.lending import Range
from shoal.torch import device as devices
from shoal.torch import references
from shoal.view import View
from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.client import Client

log = logging.getLogger("shoal")

SENT_KEPT_DEFAULT = 3
"""Batches whose leases a worker keeps after it sent them: torch's default prefetch_factor, and the one being looked at.
"""

_sent: deque[list[View]] = deque(maxlen=SENT_KEPT_DEFAULT)
_said: list[str] = []


def keep_sent(count: int) -> None:
    """In a worker: how many batches' leases outlive their sending, prefetch_factor + 1 for a parent that looks at each
    before it asks for the next."""
    global _sent
    _sent = deque(_sent, maxlen=count)


def read_views(client: Client, ranges: Sequence[Range], *, deadline_s: float | None = None) -> Views:
    """Lease (object, offset, length) each, with one request for all that is not held already.

    Raises BadRequest for a range that does not lie inside its object, and what `Client.view` raises, naming the URL.
    """
    shared_client.offer(client)
    return Views(list(ranges), lending.lend(client, ranges, deadline_s), client)


class Views(Sequence[View]):
    """N ranges of bytes, lent. The leases end when this object and all that was made from it without a copy are gone.

    Safe to pickle and to send to other processes; what arrives there reads by itself, at first use.
    """

    def __init__(self, ranges: list[Range], views: list[View] | None, client: Client | None) -> None:
        self._ranges = ranges
        self._views = views
        """None: nothing is leased yet, because this came from another process."""
        self._client = client
        self._way: shared_client.Way | None = None
        """How the process that this came from was connected."""
        self._arrived: dict[int, View] = {}
        """By position: what came as bytes."""
        self._pinned: torch.Tensor | None = None
        """All bytes end to end in pinned memory, where the segments could not be registered."""
        self._registered = False

    # Without a copy

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, position: Any) -> Any:
        """A `shoal.View` of its own, which the caller may close; for a slice, a list of them."""
        if isinstance(position, slice):
            return [_another(view) for view in self._lent()[position]]
        return _another(self._lent()[position])

    def __iter__(self) -> Iterator[View]:
        return map(_another, self._lent())

    @property
    def lengths(self) -> list[int]:
        """Bytes of each range."""
        return [length for _, _, length in self._ranges]

    @property
    def nbytes(self) -> int:
        return sum(length for _, _, length in self._ranges)

    @property
    def zero_copy(self) -> bool:
        """Whether every range lies in shared memory."""
        return all(view.zero_copy for view in self._lent())

    def readonly(self) -> list[torch.Tensor]:
        """N tensors of uint8 that are the cache's own memory. Never write to them.

        torch knows no read-only tensors, and an in-place operation on one of these ends the process with SIGSEGV. The
        lease lives as long as the tensor does. A range that crosses blocks is copied, because it lies in pieces.
        """
        return [
            devices.tensor_over(view.parts[0]) if len(view.parts) == 1 else devices.joined(view.parts)
            for view in self._lent()
        ]

    # Copies

    def tensors(self) -> list[torch.Tensor]:
        """N writable tensors of uint8, each with memory of its own."""
        return [devices.joined(view.parts) for view in self._lent()]

    def stack(self, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """One writable tensor [N, length / itemsize] of `dtype`. BadRequest unless all lengths are equal."""
        length = self._equal_length()
        if length % dtype.itemsize:
            raise BadRequest(f"stack: ranges of {length} bytes do not divide into items of {dtype.itemsize} ({dtype})")
        return devices.joined(self._parts()).view(dtype).view(len(self), length // dtype.itemsize)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> torch.Tensor | list[torch.Tensor]:
        """The bytes on a device: a tensor [N, length] of uint8 where all lengths are equal, else a list of N tensors.

        To a CUDA device each part is copied from where it lies, on the current stream; after `pin_memory` that is DMA
        out of the cache's memory, which stays leased until the copy has ended, also with `non_blocking=True` and when
        this object is dropped. The tensors of a list share one buffer.
        """
        target = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        parts = self._parts()
        if target.type == "cuda":
            packed = devices.upload(parts, self._pinned, target, non_blocking)
        else:
            packed = devices.joined(parts).to(target, non_blocking=non_blocking)
        lengths = self.lengths
        if len(set(lengths)) <= 1:
            return packed.view(len(self), lengths[0] if lengths else 0)
        return list(packed.split(lengths))

    def pin_memory(self, device: Any = None) -> Views:
        """Make copies to a GPU asynchronous: what torch's loader calls with `pin_memory=True`. Returns this object.

        The segments under the batch are registered with CUDA, each once per process. Where that is not possible, the
        batch is copied to pinned memory; `shoal.torch.device.stats()` counts both. Without a GPU nothing happens.
        """
        if not self.is_pinned() and torch.cuda.is_available():
            parts = self._parts()
            self._registered = devices.register(parts)
            if not self._registered:
                self._pinned = devices.pinned_copy(parts)
        return self

    def is_pinned(self) -> bool:
        return self._registered or self._pinned is not None

    # Between processes

    def __reduce__(self) -> tuple[Any, ...]:
        if self._views is None and not self._arrived:
            way = self._way if self._way is not None else self._own_way()
            return _received, (way, references.pack(self._ranges), [], None)
        views = self._lent()
        copied = [position for position, view in enumerate(views) if not view.zero_copy]
        if torch.utils.data.get_worker_info() is not None:
            _sent.append([view for view in views if view.zero_copy])
        content = _carry([part for position in copied for part in views[position].parts]) if copied else None
        return _received, (self._own_way(), references.pack(self._ranges), copied if content else [], content)

    def __repr__(self) -> str:
        return f"<Views: {len(self)} ranges, {self.nbytes} bytes>"

    # Inside

    def _lent(self) -> list[View]:
        """The views; leased now if this came from another process."""
        devices.reap()
        if self._views is None:
            missing = [position for position in range(len(self)) if position not in self._arrived]
            lent = lending.lend(self._own_client(), [self._ranges[position] for position in missing])
            found = self._arrived | dict(zip(missing, lent, strict=True))
            self._views, self._arrived = [found[position] for position in range(len(self))], {}
        return self._views

    def _own_client(self) -> Client:
        if self._client is None:
            assert self._way is not None, "what was read here has a client, what arrived says how to connect"
            self._client = shared_client.like(self._way)
        return self._client

    def _own_way(self) -> shared_client.Way:
        return shared_client.way(self._own_client())

    def _parts(self) -> list[memoryview]:
        return [part for view in self._lent() for part in view.parts]

    def _equal_length(self) -> int:
        lengths = set(self.lengths)
        if len(lengths) > 1:
            raise BadRequest(
                f"stack: the {len(self)} ranges have from {min(lengths)} to {max(lengths)} bytes, and one tensor takes "
                "equal lengths only; use tensors()"
            )
        return lengths.pop() if lengths else 0


def _received(way: shared_client.Way, packed: bytes, copied: list[int], content: memoryview | None) -> Views:
    views = Views(references.unpack(packed), None, None)
    views._way = way
    if content is not None:
        start = 0
        for position in copied:
            info, _, length = views._ranges[position]
            part = content[start : start + length]
            views._arrived[position] = View(info.url, [part] if length else [], False)
            start += length
    return views


def _another(view: View) -> View:
    return View(view.url, list(view.parts), view.zero_copy)


class _Carried:
    """Bytes for another process in memory without a name: a worker that is killed leaves nothing behind.

    (torch's shared tensors have a name for a moment, in which a SIGKILL leaves a file.)
    """

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._descriptor = os.memfd_create("shoal-views", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._size = sum(map(len, parts))
        os.ftruncate(self._descriptor, self._size)
        if self._size:
            with mmap.mmap(self._descriptor, self._size) as memory:
                start = 0
                for part in parts:
                    memory[start : start + len(part)] = part
                    start += len(part)
        self._duplicate = reduction.DupFd(self._descriptor)
        """Made now and not when this is pickled: it may fail too."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _carried, (self._duplicate, self._size)


def _carry(parts: Sequence[memoryview]) -> _Carried | None:
    """None when the system gives no memory or descriptor for it. An error would be raised in a thread of the queue that
    the batch goes through: the batch would be lost, and whoever waits for it would wait for ever."""
    try:
        return _Carried(parts)
    except OSError as error:
        if not _said:
            _said.append(str(error))
            log.warning("batches go without their bytes, and who gets them reads those again: %s", error)
        return None


def _carried(descriptor: Any, size: int) -> memoryview:
    """On arrival: the bytes, mapped; they go with the last view of them."""
    received = descriptor.detach()
    try:
        # Writable itself, for torch; whoever gets the view may only read.
        return memoryview(mmap.mmap(received, size) if size else b"").toreadonly()
    finally:
        os.close(received)

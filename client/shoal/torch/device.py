"""From the cache's memory to a GPU: segments registered once, copies by DMA out of them, leases until those ended.

A segment is registered with CUDA in whole when a batch in it is first pinned, read-only as it is mapped, and once per
process: pages are locked, which takes a fraction of a second per GiB. It is unregistered when its mapping goes, before
the memory is unmapped. A copy that was only begun reads its source later, so whoever begins one leaves the parts with
an event behind it (`_under_way`); they are dropped, and with them the leases, by the first call here that finds the
event completed. Where registering is refused, a batch is copied to pinned memory: slower, said once, counted.

At the end of the process nothing is waited for: what such a copy would bring goes with the process. A forked child has
no use for its parent's CUDA: it inherits the records, touches none of them, and begins with none.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shoal_transport import buffers
from shoal_transport.mapping import Mapping, mapping_under

log = logging.getLogger("shoal")

_PORTABLE = 0x01
_READ_ONLY = 0x08
"""Flags of cudaHostRegister: for all of this process's devices; memory that the process itself may only read."""


_HOST_TO_DEVICE = 1

_IN_STREAM_ORDER = (ctypes.c_int * 6)(1)
"""cudaMemcpyAttributes: sources are read in the stream's order; no hints, no flags."""

_STAGED_BYTES = 16 << 10
"""Parts smaller than this on average are joined in pinned memory first: to begin a copy takes as long as to copy so
many bytes."""


@dataclass(slots=True)
class DeviceStats:
    """Of this process, since it began."""

    segments_registered: int = 0
    """With CUDA, now."""
    bytes_registered: int = 0
    """In them."""
    refused: int = 0
    """Segments that CUDA would not register."""
    batches_copied: int = 0
    """To pinned memory, because they did not lie in registered segments."""
    batches_uploaded: int = 0
    under_way: int = 0
    """Uploads whose end nobody has noticed yet; their leases are held."""


_UnderWay = tuple[Any, Sequence[memoryview]]
"""(event, what the copies before it read)."""


class _Process:
    """What belongs to this process: never its parent's, nor its child's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Guards `under_way`. Never held while CUDA is asked for something that takes long."""
        self.registering = threading.Lock()
        self.pid = os.getpid()
        self.registered: dict[int, bool] = {}
        """By address of the segment; False where it was refused."""
        self.under_way: list[_UnderWay] = []
        self.stats = DeviceStats()
        self.said = False


_process = _Process()
_inherited: list[_Process] = []
"""In a forked child: kept, because CUDA's objects of the parent can neither be used nor destroyed here."""


def stats() -> DeviceStats:
    """The counters; the same object each time."""
    return _process.stats


def tensor_over(part: memoryview) -> torch.Tensor:
    """A tensor of uint8 over the memory of a view, without a copy. Never write to it: that memory may be read-only."""
    if not len(part):
        return torch.empty(0, dtype=torch.uint8)
    # Over what exports the view, which torch does not warn about: that one calls itself writable.
    exporter = part.obj
    offset = buffers.address_of(part) - buffers.address_of(exporter)
    return torch.frombuffer(exporter, dtype=torch.uint8, count=len(part), offset=offset)


def register(parts: Sequence[memoryview]) -> bool:
    """Register the segments under these with CUDA; whether all of them now lie in registered memory."""
    good = True
    for part in parts:
        mapping = mapping_under(part)
        if mapping is None:
            good = False
            continue
        known = _process.registered.get(mapping.address)
        good &= _register(mapping) if known is None else known
    return good


def pinned_copy(parts: Sequence[memoryview]) -> torch.Tensor:
    """All bytes end to end, in pinned memory of torch's own."""
    sizes = [len(part) for part in parts]
    pinned = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
    for target, part in zip(pinned.split(sizes), parts, strict=True):
        target.copy_(tensor_over(part))
    _process.stats.batches_copied += 1
    return pinned


def upload(
    parts: Sequence[memoryview], pinned: torch.Tensor | None, device: torch.device, non_blocking: bool
) -> torch.Tensor:
    """All bytes end to end on a CUDA device, copied on its current stream, from `pinned` if that is given."""
    reap()
    sizes = [len(part) for part in parts]
    with torch.cuda.device(device):
        packed = torch.empty(sum(sizes), dtype=torch.uint8, device="cuda")
        event = torch.cuda.Event()
        try:
            if pinned is None and sum(sizes) < len(sizes) * _STAGED_BYTES:
                pinned = joined(parts).pin_memory()
            if pinned is not None:
                packed.copy_(pinned, non_blocking=True)
            elif not _copy_parts(packed, parts):
                for target, part in zip(packed.split(sizes), parts, strict=True):
                    target.copy_(tensor_over(part), non_blocking=True)
        finally:
            # Also when it failed half-way: what was begun still reads.
            event.record()
            with _process.lock:
                _process.under_way.append((event, parts))
                _process.stats.under_way = len(_process.under_way)
        _process.stats.batches_uploaded += 1
    if not non_blocking:
        event.synchronize()
        reap()
    return packed


def _copy_parts(packed: torch.Tensor, parts: Sequence[memoryview]) -> bool:
    """Begin a copy for each part; False where CUDA's own functions are not to be had. torch's takes four times as long
    to begin one."""
    wanted = [(buffers.address_of(part), len(part)) for part in parts if len(part)]
    target, targets = packed.data_ptr(), list[int]()
    for _, size in wanted:
        targets.append(target)
        target += size
    return bool(wanted) and (_copy_together(targets, wanted) or _copy_each(targets, wanted))


def _copy_together(targets: list[int], wanted: list[tuple[int, int]]) -> bool:
    """One call for all, which CUDA has since 13.0; False where it has not, or does not take it."""
    copy, count = _memcpy_batch(), len(wanted)
    if copy is None:
        return False
    sources, sizes = zip(*wanted, strict=True)
    many, lengths = ctypes.c_void_p * count, ctypes.c_size_t * count
    current = torch.cuda.current_stream()
    # Not on the default stream, which CUDA refuses; the one beside it comes after what was there, and before the rest.
    stream = current if current.cuda_stream else _beside(current.device_index)
    stream.wait_stream(current)
    error = copy(
        many(*targets), many(*sources), lengths(*sizes), count, _IN_STREAM_ORDER, (ctypes.c_size_t * 1)(0), 1,
        stream.cuda_stream,
    )  # fmt: skip
    current.wait_stream(stream)
    if error:
        _forget_last_error()
    return not error


def _copy_each(targets: list[int], wanted: list[tuple[int, int]]) -> bool:
    copy = _memcpy_async()
    if copy is None:
        return False
    stream = torch.cuda.current_stream().cuda_stream
    for target, (source, size) in zip(targets, wanted, strict=True):
        if error := copy(target, source, size, _HOST_TO_DEVICE, stream):
            raise RuntimeError(f"cudaMemcpyAsync: {_cudart().cudaGetErrorString(_cudart().cudaError(error))}")
    return True


# PyDLL: these calls only begin copies, and to let go of the interpreter's lock would cost more than they take.


@functools.cache
def _memcpy_batch() -> Any:
    copy = getattr(ctypes.PyDLL(None), "cudaMemcpyBatchAsync", None)
    if copy is None or int((torch.version.cuda or "0").partition(".")[0]) < 13:  # 12.8 had other arguments
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    copy.argtypes = [pointer, pointer, pointer, size, pointer, pointer, size, pointer]
    return copy


@functools.cache
def _memcpy_async() -> Any:
    copy = getattr(ctypes.PyDLL(None), "cudaMemcpyAsync", None)
    if copy is not None:
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    return copy


@functools.cache
def _beside(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def joined(parts: Sequence[memoryview]) -> torch.Tensor:
    """All of them end to end, in one pass, as a writable tensor of uint8."""
    whole = bytearray().join(parts)
    return torch.frombuffer(whole, dtype=torch.uint8) if whole else torch.empty(0, dtype=torch.uint8)


def reap() -> None:
    """Drop what uploads that have ended were reading. Cheap, and called by every use of a batch."""
    if not _process.under_way:
        return
    ended: list[_UnderWay] = []
    with _process.lock:
        before, _process.under_way = _process.under_way, []
        for upload_ in before:
            (ended if upload_[0].query() else _process.under_way).append(upload_)
        _process.stats.under_way = len(_process.under_way)
    # Here, outside the lock, the leases end with `ended`.


def wait_for_uploads(timeout_s: float) -> bool:
    """For the end of an epoch: return when no upload is under way, or False after that time."""
    deadline = time.monotonic() + timeout_s
    while True:
        reap()
        if not _process.under_way:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)  # CUDA has no wait with a deadline


def _register(mapping: Mapping) -> bool:
    process = _process
    with process.registering:
        known = process.registered.get(mapping.address)
        if known is not None:
            return known
        error = int(_cudart().cudaHostRegister(mapping.address, mapping.size, _PORTABLE | _READ_ONLY))
        process.registered[mapping.address] = not error
        weakref.finalize(mapping, _unregister, process, mapping.address, mapping.size).atexit = False
        if not error:
            process.stats.segments_registered += 1
            process.stats.bytes_registered += mapping.size
            return True
        process.stats.refused += 1
        _forget_last_error()
        if not process.said:
            process.said = True
            reason = _cudart().cudaGetErrorString(_cudart().cudaError(error))
            log.warning(
                "CUDA does not register a segment of %d bytes (%s): batches are copied to pinned memory",
                mapping.size, reason,
            )  # fmt: skip
        return False


def _unregister(process: _Process, address: int, size: int) -> None:
    """The mapping is about to go, and with it the last view of it: no upload reads it any more.

    Takes no lock, because garbage collection may come here while this thread holds one.
    """
    registered = process.registered.pop(address, False)
    if registered and process.pid == os.getpid():
        process.stats.segments_registered -= 1
        process.stats.bytes_registered -= size
        if int(_cudart().cudaHostUnregister(address)):
            _forget_last_error()


def _cudart() -> Any:
    return torch.cuda.cudart()


def _forget_last_error() -> None:
    """CUDA keeps an error that was handled until somebody asks; torch would take it for that of its next kernel."""
    forget = getattr(ctypes.CDLL(None), "cudaGetLastError", None)
    if forget is not None:
        forget()


def _forked() -> None:
    global _process
    _inherited.append(_process)
    _process = _Process()


os.register_at_fork(after_in_child=_forked)

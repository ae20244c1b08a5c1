"""Ranges as a few flat buffers: what a worker tells its parent instead of bytes.

A reference names what to read, not where it lies: (URL, version, offset, length). What ranges share is said once: the
beginning of their URLs, objects that several ranges lie in, block sizes. So 64 files of an S3 prefix cost some 80 bytes
each, most of it their names and etags. Knows neither torch nor the client.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shoal.lending import Range
from shoal.objects import ObjectInfo
from shoal_core.keys import FINGERPRINT_BYTES


class _Packed(msgspec.Struct, array_like=True):
    """Columns: the first eight by object, the last three by range."""

    url_start: str
    urls: list[str]
    """Beyond `url_start`."""
    origin_start: str
    origins: list[str]
    """Beyond `origin_start`; empty where they are the same as `urls`."""
    etags: list[str]
    fingerprints: bytes
    sizes: list[int]
    block_sizes: list[int]
    """One for all, or one each."""
    stale: list[int]
    """Which objects are."""
    objects: list[int]
    """Position of each range's object; empty where each range has an object of its own, in order."""
    offsets: list[int]
    """Empty where all begin at 0."""
    lengths: list[int]
    """Empty where each is its whole object."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Packed)


def pack(ranges: Sequence[Range]) -> bytes:
    """For `unpack`, in a process of the same version of this code."""
    numbers: dict[bytes, int] = {}
    infos: list[ObjectInfo] = []
    objects: list[int] = []
    for info, _, _ in ranges:
        number = numbers.setdefault(info.fingerprint, len(infos))
        if number == len(infos):
            infos.append(info)
        objects.append(number)
    url_start, urls = _without_start([info.url for info in infos])
    origin_start, origins = _without_start([info.origin for info in infos])
    block_sizes = [info.block_size_bytes for info in infos]
    lengths = [length for _, _, length in ranges]
    offsets = [offset for _, offset, _ in ranges]
    packed = _Packed(
        url_start, urls, origin_start, [] if origins == urls else origins,
        [info.etag for info in infos], b"".join(info.fingerprint for info in infos), [info.size for info in infos],
        block_sizes[:1] if len(set(block_sizes)) == 1 else block_sizes,
        [number for number, info in enumerate(infos) if info.stale],
        [] if len(infos) == len(objects) else objects,
        offsets if any(offsets) else [],
        [] if lengths == [info.size for info, _, _ in ranges] else lengths,
    )  # fmt: skip
    return _encoder.encode(packed)


def unpack(data: bytes) -> list[Range]:
    """The ranges again; those in one object share one ObjectInfo."""
    packed = _decoder.decode(data)
    count = len(packed.urls)
    block_sizes = packed.block_sizes * count if len(packed.block_sizes) == 1 else packed.block_sizes
    origins, stale = packed.origins or packed.urls, set(packed.stale)
    infos = [
        ObjectInfo(
            packed.url_start + packed.urls[number], packed.sizes[number], packed.etags[number],
            packed.fingerprints[FINGERPRINT_BYTES * number : FINGERPRINT_BYTES * (number + 1)],
            block_sizes[number], packed.origin_start + origins[number], number in stale,
        )
        for number in range(count)
    ]  # fmt: skip
    objects = packed.objects or range(count)
    offsets = packed.offsets or [0] * len(objects)
    lengths = packed.lengths or [infos[number].size for number in objects]
    return [(infos[number], offset, length) for number, offset, length in zip(objects, offsets, lengths, strict=True)]


def _without_start(texts: list[str]) -> tuple[str, list[str]]:
    """What all begin with, and the rest of each."""
    if not texts:
        return "", []
    # What the first and the last in their order share, all between them share.
    first, last = min(texts), max(texts)
    count = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:count], [text[count:] for text in texts]

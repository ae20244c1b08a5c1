"""Many ranges read as one: what `Client.read_many` does.

Held grants answer in one pass under one lock; the rest goes to the node, or the nodes, together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoal import pieces
from shoal.objects import ObjectInfo
from shoal.pieces import Piece
from shoal_core.errors import BadRequest, ShoalError
from shoal_transport import buffers

if TYPE_CHECKING:
    from shoal.client import Client, Range


def held(client: Client, requests: Sequence[Range], results: list[Any]) -> list[int]:
    """Fill in what held grants answer; the positions of the rest."""
    missing: list[int] = []
    known, by_key = client._objects.get, client._grants.by_key
    with client._grants.lock:
        for position, request in enumerate(requests):
            url, offset, length = request if isinstance(request, tuple) else (request, 0, None)
            info = url if isinstance(url, ObjectInfo) else known(url)
            if info is not None:
                count = info.size - offset
                if length is not None and length < count:
                    count = length
                size = info.block_size_bytes
                inside = offset % size
                if count > 0 and offset >= 0 and inside + count <= size:
                    grant = by_key.get((info.fingerprint, offset // size))
                    if grant is not None:
                        if not grant.touches:
                            client._grants.touch(grant)
                        else:
                            grant.touches += 1
                        results[position] = bytes(grant.memory[inside : inside + count])
                        continue
            missing.append(position)
    client._stats.hits["shared memory"] += len(requests) - len(missing)
    return missing


def missing(
    client: Client, requests: Sequence[Range], positions: list[int], results: list[Any], deadline: float
) -> dict[int, ShoalError]:
    ranges = [r if isinstance(r := requests[position], tuple) else (r, 0, None) for position in positions]
    infos = client._resolution.many([url for url, _, _ in ranges], deadline)
    errors: dict[int, ShoalError] = {}
    wanted: list[Piece] = []
    targets: list[memoryview] = []
    for position, (_, offset, length), info in zip(positions, ranges, infos, strict=True):
        if isinstance(info, ShoalError):
            errors[position] = info
            continue
        try:
            count = pieces.checked(info, offset, length)
        except BadRequest as error:
            errors[position] = error
            continue
        results[position] = b""
        if count:
            results[position], target = buffers.new_bytes(count)
            targets.append(target)
            wanted.extend(pieces.split(info, offset, count, target, position))
    failed = client._reading.read(wanted, deadline)
    for target in targets:
        target.release()
    for position, info in zip(positions, infos, strict=True):
        if position in failed and isinstance(info, ObjectInfo):
            client._resolution.doubt(info, failed[position])
    return errors | failed

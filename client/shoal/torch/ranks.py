"""Who says which rank this is: arguments, else a process group, else torch.distributed, else nobody (rank 0 of 1)."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch.distributed

from shoal.torch.sharding import Shard
from shoal_core.errors import BadRequest

log = logging.getLogger("shoal")


def find(rank: int | None, world_size: int | None, process_group: Any) -> Shard:
    """This process's shard. `process_group` is a ProcessGroup or one dimension of a DeviceMesh.

    Ranks of a mesh that are alike in that dimension get the same samples, as peers in tensor and pipeline parallelism
    must. BadRequest names what is missing or wrong.
    """
    if rank is not None or world_size is not None:
        if rank is None or world_size is None:
            raise BadRequest(f"{'rank' if rank is None else 'world_size'} is missing: rank and world_size go together")
        return Shard(rank, world_size, together=process_group is not None or _initialized())
    if process_group is not None:
        if hasattr(process_group, "get_local_rank"):  # a DeviceMesh
            if process_group.ndim != 1:
                raise BadRequest(
                    f"process_group: a mesh of {process_group.ndim} dimensions, {process_group.mesh_dim_names}; give "
                    "the one over which data is parallel, such as mesh['dp']"
                )
            process_group = process_group.get_group()
        own = torch.distributed.get_rank(process_group)
        if own < 0:
            raise BadRequest("process_group: this process is not in it")
        return Shard(own, torch.distributed.get_world_size(process_group), together=True)
    if _initialized():
        return Shard(torch.distributed.get_rank(), torch.distributed.get_world_size(), together=True)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # as torchrun sets it
        log.warning(
            "WORLD_SIZE is %s, but torch.distributed is not initialized: this loader reads everything. "
            "Make it after init_process_group, or give rank and world_size",
            os.environ["WORLD_SIZE"],
        )
    return Shard()


def _initialized() -> bool:
    """Ranks that torch.distributed knows wait for each other in every step, whoever numbered them."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()

"""Lets TorchTitan 0.3.0 train where it was not meant to: on a processor, and with a somewhat older torch.

Nothing here concerns the data. TorchTitan asks its device module for memory statistics, which `torch.cpu` does not
have, and its attention for language models (flex) has no backward pass on a processor: there, plain causal attention
stands in, which also looks across documents.
"""

from __future__ import annotations

import inspect
import os
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.fsdp


class Processor:
    """What TorchTitan asks of torch.cuda, answered for the processor."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_device_name(self, device: Any = None) -> str:
        return "processor"

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(total_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        return {}

    def reset_peak_memory_stats(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass


def use(device: str) -> None:
    """Before anything else of TorchTitan is imported: its modules copy the device's name."""
    _complete_older_torch()
    if device == "cpu":
        from torchtitan.tools import utils

        utils.device_type, utils.device_module = "cpu", Processor()


def adapt(config: Any, device: str) -> None:
    """The debug model on this device, with one result per input: no choice of kernels by stopwatch."""
    from torch.nn.attention.flex_attention import flex_attention
    from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention

    FlexAttention._compiled_flex_attn = torch.compile(flex_attention)
    _complete_older_flex()
    config.training.disable_cuda_graphs = True
    if torch.distributed.fsdp.DataParallelMeshDims.__init__ is _too_old:
        config.parallelism.spmd_backend = "partial_dtensor"
    config.debug.seed, config.debug.deterministic = 0, True
    if device == "cpu":
        for _, _, layer, name in list(config.model_spec.model.traverse(FlexAttention.Config)):
            setattr(layer, name, ScaledDotProductAttention.Config())


def adapt_built(trainer: Any, device: str) -> None:
    """On a processor, gloo sums gradients, and scales them apart from that."""
    from torch.distributed.fsdp import FSDPModule

    if device == "cpu":
        for module in (module for part in trainer.model_parts for module in part.modules()):
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)


def _complete_older_torch() -> None:
    """torch 2.11 lacks two names that TorchTitan 0.3.0 uses: a class of other backends than the one that `adapt` takes
    then, and the public name of a function."""
    if not hasattr(torch.distributed.fsdp, "DataParallelMeshDims"):
        torch.distributed.fsdp.DataParallelMeshDims = type("DataParallelMeshDims", (), {"__init__": _too_old})
    if not hasattr(torch.distributed, "set_timeout"):
        from torch.distributed.distributed_c10d import _set_pg_timeout

        torch.distributed.set_timeout = _set_pg_timeout


def _complete_older_flex() -> None:
    """torch 2.11 always keeps full blocks apart in its masks; later ones ask, and TorchTitan answers yes."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torchtitan.models.common import attention

    if "separate_full_blocks" not in inspect.signature(create_block_mask).parameters:

        def create(*arguments: Any, separate_full_blocks: bool = True, **keywords: Any) -> Any:
            assert separate_full_blocks, "torch 2.11 knows no other way"
            return create_block_mask(*arguments, **keywords)

        attention._compiled_create_block_mask = torch.compile(create)


def _too_old(*_: Any, **__: Any) -> None:
    raise RuntimeError(f"torch {torch.__version__} has no DataParallelMeshDims; this parallelism needs a newer one")

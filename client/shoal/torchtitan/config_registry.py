"""TorchTitan's own Llama 3 configurations, reading through the cache: `--module shoal.torchtitan --config NAME`.

Each is TorchTitan's function of the same name with its data loaders exchanged, for training and for validation; all
else is as TorchTitan ships it. The data's URL is left to the command line (`--dataloader.dataset`) or to the caller.
"""

from __future__ import annotations

# pyright: reportUnknownParameterType=false
# TorchTitan is not installed where types are checked.
from torchtitan.models.llama3 import config_registry  # pyright: ignore[reportMissingImports] - its users have it
from torchtitan.trainer import Trainer  # pyright: ignore[reportMissingImports]

from shoal.torchtitan.loader import ShoalDataLoader


def llama3_debugmodel() -> Trainer.Config:
    """6 layers of 256, vocabulary 2,048: trains in seconds."""
    return from_cache(config_registry.llama3_debugmodel())


def llama3_8b() -> Trainer.Config:
    """8.03 billion parameters; sequences of 8,192 tokens, FSDP over all ranks."""
    return from_cache(config_registry.llama3_8b())


def llama3_70b() -> Trainer.Config:
    """70.6 billion parameters; 8 ranks of tensor parallelism, FSDP over the rest."""
    return from_cache(config_registry.llama3_70b())


def llama3_405b() -> Trainer.Config:
    """406 billion parameters in float8; 8 ranks of tensor parallelism, FSDP over the rest."""
    return from_cache(config_registry.llama3_405b())


def from_cache(config: Trainer.Config) -> Trainer.Config:
    """The same configuration, of any of TorchTitan's language models, with our data loaders in it."""
    config.dataloader = ShoalDataLoader.Config()
    config.validator.dataloader = ShoalDataLoader.Config(infinite=False)
    return config

"""TorchTitan trains from the cache: a data loader for its `Trainer.Config`, and its Llama 3 configurations with it.

`torchrun -m torchtitan.train --module shoal.torchtitan --config llama3_8b --dataloader.dataset s3://bucket/text` finds
the configurations in `config_registry`. Written for TorchTitan 0.3.0.
"""

from shoal.torchtitan.loader import ShoalDataLoader

__all__ = ["ShoalDataLoader"]

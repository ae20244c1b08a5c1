"""Shoal for PyTorch: a map-style data set over files below a URL, and torch's own loader with an account of waiting."""

from shoal.torch.dataset import Dataset, Sample
from shoal.torch.loader import DataLoader, LoaderStats

__all__ = ["DataLoader", "Dataset", "LoaderStats", "Sample"]

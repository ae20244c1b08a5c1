"""Shoal for PyTorch: map-style data sets over files, shards and tokens, and a drop-in loader that resumes exactly."""

from shoal.torch.dataset import Dataset, Sample
from shoal.torch.formats.documents import Document, Filter
from shoal.torch.formats.tokenised import Tokenizer
from shoal.torch.loader import DataLoader
from shoal.torch.sharding import Locality
from shoal.torch.stream import BlockShuffle
from shoal.torch.views import Views, read_views
from shoal.torch.waiting import LoaderStats

__all__ = [
    "BlockShuffle",
    "DataLoader",
    "Dataset",
    "Document",
    "Filter",
    "LoaderStats",
    "Locality",
    "Sample",
    "Tokenizer",
    "Views",
    "read_views",
]

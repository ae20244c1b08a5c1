"""Names that people give: DNS labels, and names of data sets, which are one label or a namespace's and its own."""

from __future__ import annotations

import re

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DATASET = re.compile(rf"{_LABEL}(?:\.{_LABEL})?")

DATASET_RULE = (
    "a name is a DNS label: a-z, 0-9 and inner -, at most 63 characters; or two of them joined by a dot, as in "
    "namespace.name"
)


def is_label(name: str) -> bool:
    """Whether it may name a namespace."""
    return _DNS_LABEL.fullmatch(name) is not None


def is_dataset(name: str) -> bool:
    """Whether it may name a data set."""
    return _DATASET.fullmatch(name) is not None

"""view: the nodes of the cluster, as far as the node that is asked knows them. Also the question whether it lives."""

from __future__ import annotations

import msgspec

from shoal_core.verbs import dataset
from shoal_core.view import View

KIND = 17


class Request(msgspec.Struct, array_like=True, frozen=True):
    epoch: int
    """Of the view that the asker has; 0: none."""
    datasets: bool = False
    """The data sets that were declared are wanted, too: a node asks, which may have been away when they were."""


class Reply(msgspec.Struct, array_like=True, frozen=True):
    epoch: int
    """Of this node's view; 0: it is alone."""
    view: View | None
    """None where the asker's is as late."""
    datasets: list[dataset.Request] = []

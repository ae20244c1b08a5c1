"""Nodes and clients for the tests of faults; every client is closed with its test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

import shoal
from tests.support.running_node import in_process_node, node_process

__all__ = ["in_process_node", "node_process"]

Connect = Callable[..., shoal.Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """connect(address, deadline_s=...) -> Client, closed with the test."""
    with contextlib.ExitStack() as stack:

        def make(address: str, *, deadline_s: float = 20.0, **options: object) -> shoal.Client:
            return stack.enter_context(shoal.connect(address, deadline_s=deadline_s, **options))  # type: ignore[arg-type]

        yield make

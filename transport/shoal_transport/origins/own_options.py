"""Data sets with options of their own: credentials, an endpoint; set, changed and taken away while reads go on.

Reads that are made for a data set, by its name, use its options and nobody else's, even where another one has the same
URL: so what one tenant may read says nothing about another. A data set may also be closed, with the error that its
reads get, or awaited: its credentials are on their way, and its reads wait for them within their own time. One of
which nothing was said uses what is configured for its URL.

What is here is secret: it is never part of a text. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from shoal_core.errors import ShoalError

_PLACE = frozenset(("endpoint", "google_base_url", "region", "allow_http", "skip_signature"))
"""Options that say where a store is, and prove nothing."""
_ENDPOINT = frozenset(("endpoint", "google_base_url"))


class Options(NamedTuple):
    """Of one data set."""

    number: int
    """Another after each change: what was opened with the options of before is not used any more."""
    values: Mapping[str, str]

    @property
    def has_credentials(self) -> bool:
        return not self.values.keys() <= _PLACE

    @property
    def is_alone(self) -> bool:
        """What the node is configured with must not be mixed in: a tenant's endpoint is not to be shown the node's own
        credentials, and a tenant's credentials are complete or wrong."""
        return self.has_credentials or not self.values.keys().isdisjoint(_ENDPOINT)

    def __repr__(self) -> str:
        return f"Options({self.number}, {sorted(self.values)})"


class OwnOptions:
    """Of all data sets of one node, by name."""

    def __init__(self) -> None:
        self._known: dict[str, Options | ShoalError | asyncio.Event] = {}
        self._numbers = itertools.count(1)
        self.refused: Callable[[str], None] = lambda dataset: None
        """Called where an origin refused the credentials of a data set that has some."""

    def set(self, dataset: str, values: Mapping[str, str]) -> None:
        """From now on its reads use these options."""
        values = {name.lower(): value for name, value in values.items()}
        if values.keys() <= _PLACE and not values.keys().isdisjoint(_ENDPOINT):
            values["skip_signature"] = "true"  # else it would be signed as the node, for whoever answers there
        known = self._known.get(dataset)
        if not (isinstance(known, Options) and known.values == values):
            self._put(dataset, Options(next(self._numbers), values))

    def close(self, dataset: str, error: ShoalError) -> None:
        """From now on its reads fail with this error."""
        self._put(dataset, error)

    def wait_for(self, dataset: str) -> None:
        """Its reads wait until it is set, closed or forgotten; what was known of it counts no more."""
        if not isinstance(self._known.get(dataset), asyncio.Event):
            self._known[dataset] = asyncio.Event()

    def forget(self, dataset: str) -> None:
        """Its reads use what is configured for their URLs."""
        known = self._known.pop(dataset, None)
        if isinstance(known, asyncio.Event):
            known.set()

    async def ready(self, dataset: str) -> None:
        """Returns when it may be read; raises what it was closed with. Not bounded in time: the caller is."""
        while isinstance(known := self._known.get(dataset), asyncio.Event):
            await known.wait()
        if isinstance(known, ShoalError):
            raise type(known)(*known.args)

    def options(self, dataset: str) -> Options | None:
        known = self._known.get(dataset)
        return known if isinstance(known, Options) else None

    def _put(self, dataset: str, now: Options | ShoalError) -> None:
        before = self._known.get(dataset)
        self._known[dataset] = now
        if isinstance(before, asyncio.Event):
            before.set()

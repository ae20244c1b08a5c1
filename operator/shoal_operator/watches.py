"""Whether the watches live: when each kind was last heard of, and what to say when one fell silent.

A watch that delivers nothing may be quiet or dead, and the framework keeps its bookmarks to itself. But every watch
request ends after less than a minute and is made again at once, so a watch whose last request was answered two minutes
ago is dead: its task ended, or it hangs. While the API server cannot be reached no watch can be made, and a restart
would help nobody; so the two minutes are counted from when it came back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from shoal_operator.api import Api

SILENT_MOST_S = 120.0


class Watches:
    """The account of all watched kinds."""

    def __init__(self, api: Api, kinds: Iterable[str], now_s: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._now_s = now_s
        self._heard_s = {kind: now_s() for kind in kinds}

    def heard(self, kind: str) -> None:
        if kind in self._heard_s:
            self._heard_s[kind] = self._now_s()

    def age_s(self) -> float:
        """Of the watch that was not heard of for the longest."""
        return self._now_s() - min(self._heard_s.values())

    def silent(self) -> list[str]:
        """Kinds whose watch is dead."""
        if self._api.down_since_s is not None:
            return []
        now_s = self._now_s()
        return sorted(
            kind
            for kind, heard_s in self._heard_s.items()
            if now_s - max(heard_s, self._api.up_since_s) > SILENT_MOST_S
        )

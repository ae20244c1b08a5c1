"""The verbs of a session whose reader may read some data sets only. What is not in this table, or the session's own, is
refused: a verb that is new is not a reader's until it is listed here.

Each looks at what the request names before anything is done with it. What a fingerprint stands for never changes, so
an object that was looked at once may be looked up again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shoal_core.verbs import complain, evict, inspect, listing, resolve, stat, store, view
from shoal_node import inspection, metrics, passing, stores
from shoal_node.administration import on_loop
from shoal_node.objects import ObjectRecord
from shoal_node.resolver import Resolver
from shoal_node.runtime import Node
from shoal_node.scope import Scope

_ABOUT_THE_NODE = (
    "node", "pid", "version", "addresses", "uptime_s", "draining", "embedded", "cluster", "nvme_direct", "disk_failed",
    "segments", "tiers", "clients", "leases", "leased_bytes", "fills_in_flight", "disk_queue", "view_epoch",
    "nodes_dead", "near_bytes", "pull_queue",
    *(family.attribute for family in metrics.FAMILIES if "space" not in family.labels),
)  # fmt: skip
"""Of the status: numbers of the whole node, which name no tenant."""


class ReaderVerbs:
    """`verbs` is its table, as of `administration.Administration`."""

    def __init__(self, node: Node, resolver: Resolver, scope: Scope) -> None:
        self._node = node
        self._resolver = resolver
        self._scope = scope
        self.verbs: dict[int, Callable[[Any], Any]] = {
            resolve.KIND: self._resolve, listing.KIND: self._list, inspect.KIND: self._inspect,
            complain.KIND: self._complain, store.KIND: self._store, evict.KIND: self._evict, stat.KIND: self._stat,
            view.KIND: self._view,
        }  # fmt: skip

    def _resolve(self, request: resolve.Request) -> resolve.Reply:
        return on_loop(self._node, self._resolver.resolve(request, self._scope), request.deadline_ms)

    def _list(self, request: listing.Request) -> listing.Reply:
        return on_loop(self._node, self._resolver.list(request, self._scope), request.deadline_ms)

    def _inspect(self, request: inspect.Request) -> inspect.Reply:
        known = self._known(request.fingerprints)
        self._scope.check_records(self._node.state.spaces, known)
        asked = list({record.fingerprint: None for record in known})
        told = inspection.residency(self._node, inspect.Request(asked)).objects
        found = dict(zip(asked, told, strict=True))
        return inspect.Reply([found.get(fingerprint) for fingerprint in request.fingerprints])

    def _complain(self, request: complain.Request) -> complain.Reply:
        with self._node.step() as state:
            known = 0 <= request.entry < state.index.capacity
            space = state.spaces[state.index.space[request.entry]].name if known else ""
        if not self._scope.touches(space):
            raise self._scope.refusal("a block of another data set")
        return complain.Reply(inspection.complain(self._node, request.entry, request.generation))

    def _store(self, request: store.Request) -> store.Reply:
        self._expect_own_derived(self._node.records([request.fingerprint]), "store")
        return on_loop(self._node, stores.put(self._node, request), request.deadline_ms)

    def _evict(self, request: evict.Request) -> evict.Reply:
        """Of derived objects: what is to be stored anew must go first."""
        known = self._known(request.fingerprints)
        self._expect_own_derived(known, "evict")
        return inspection.evict_objects(self._node, evict.Request([record.fingerprint for record in known]))

    def _stat(self, request: stat.Request) -> stat.Reply:
        status = self._node.status()
        values = {name: status[name] for name in _ABOUT_THE_NODE if name in status}
        own = {self._scope.own_name(name): space for name, space in status["spaces"].items()}
        values["spaces"] = {name: space for name, space in own.items() if name is not None}
        values["config"] = {"nvme": []}
        values["addresses"] = [address for address in status["addresses"] if address.startswith("tcp:")]
        return stat.Reply(values)

    def _view(self, request: view.Request) -> view.Reply:
        return passing.tell_view(self._node, view.Request(request.epoch))

    def _expect_own_derived(self, records: Sequence[ObjectRecord], verb: str) -> None:
        spaces = self._node.state.spaces
        for record in records:
            if not self._scope.is_own_derived(spaces[record.space].name, record.url):
                raise self._scope.refusal(f"the verb {verb}, but for derived objects of its own namespace")

    def _known(self, fingerprints: Sequence[bytes]) -> list[ObjectRecord]:
        """Those that are remembered. The answer is about these alone: another may be remembered a moment later."""
        with self._node.step() as state:
            found = [state.objects.get(fingerprint) for fingerprint in fingerprints]
        return [record for record in found if record is not None]

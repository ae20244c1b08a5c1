"""The data sets of a node while it runs: made, changed, removed, and what is said of each.

A data set is a space, and a space has a number that its blocks carry. So one that is removed leaves its number behind:
at once nobody finds it any more, nor any object of it, and its origin is closed; then its blocks go, a slab at a time,
and once more after a while, for what was still on its way. Declared again, it gets its number back; a number that
nobody came back for goes to another data set.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from shoal_core import config, index, limits, structure
from shoal_core.errors import BadRequest, NotFound
from shoal_core.verbs import dataset
from shoal_node import declared_datasets, origin_options
from shoal_node.spaces import Space, space_of
from shoal_node.state import NodeState

if TYPE_CHECKING:
    from shoal_node.runtime import Node

_REUSE_S = 600.0
"""A number is given to another data set only after so long: no fill lasts until then."""


class Datasets:
    """One for the whole node. Any thread may call."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.are_followed = False
        """The pool's state says which there are; nobody else does."""
        self._removed: dict[int, float] = {}
        """Numbers of removed data sets, and when that was."""

    def begin(self) -> None:
        """Those that the node starts with are read as they say; on the loop."""
        for space in self._node.state.spaces:
            if space.url is not None:
                self._set_options(space)

    def declare(self, request: dataset.Request) -> bool:
        """A client or another node names one: whether it is new. ConfigError or BadRequest names what cannot be."""
        if self.are_followed:
            raise BadRequest(f"dataset {request.name}: this pool's data sets are Dataset resources in Kubernetes")
        if request.ttl_s is not None and not 0 < request.ttl_s < limits.TTL_S_MAX:
            raise BadRequest(f"dataset {request.name}.ttl_s: {request.ttl_s} is not between 0 and {limits.TTL_S_MAX}")
        settings = msgspec.structs.asdict(request)
        name = settings.pop("name")
        settings["ttl_s"] = None if request.ttl_s is None else max(1, int(request.ttl_s))
        checked = structure.build(config.Dataset, settings, f"dataset {name}")
        is_new = self.put(name, checked)
        self.save()
        return is_new

    def put(self, name: str, settings: config.Dataset, *, has_secret: bool = False) -> bool:
        """Make or change one; whether it is new. With `has_secret` somebody else says how its origin is read. `save`
        comes after it, as after `remove`."""
        node = self._node
        config.check_dataset(f"dataset {name}", name, settings, node.config)
        space = space_of(node.tenant, name, **msgspec.structs.asdict(settings))
        with node.step() as state:
            number = _number_of(state, name)
            known = state.spaces[number] if number is not None else None
            if number is None:
                self._take_over_number(state, name)
            elif known is not None and _is_elsewhere(known, space):
                state.objects.forget_space(number)
            self._removed.pop(state.add_space(space, node.now_s()), None)
        if not has_secret:
            node.loop.call_soon_threadsafe(self._set_options, space)
        return known is None or known.is_removed

    def remove(self, name: str) -> bool:
        """Nobody finds it any more, and its blocks go; False when it was not there. Takes as long as that takes."""
        node = self._node
        with node.step() as state:
            number = _number_of(state, name)
            if number is None or state.spaces[number].is_removed:
                return False
            state.spaces[number] = msgspec.structs.replace(
                state.spaces[number], url=None, quota_bytes=None, is_removed=True
            )
            state.objects.forget_space(number)
            self._removed[number] = time.monotonic()
        gone = NotFound(f"data set {name} was removed")
        node.loop.call_soon_threadsafe(node.origins.own_options.close, name, gone)
        self._drop_blocks(number)
        return True

    def sweep(self) -> None:
        """What came after its data set was removed goes as well; to be called now and then."""
        for number in list(self._removed):
            self._drop_blocks(number)

    @property
    def names(self) -> list[str]:
        """Of all that can be read."""
        return [space.name for space in self._node.state.spaces if space.url is not None]

    def numbers(self, state: NodeState) -> dict[str, dict[str, Any]]:
        """What this node holds of each and how it was read. Inside a step."""
        counters = self._node.counters
        found: dict[str, dict[str, Any]] = {}
        for number, space in enumerate(state.spaces):
            if space.url is not None:
                found[space.name] = {
                    "objects": None, "bytes": None, "manifest": None, "scanned_at_s": None, "error": None,
                    "cached_bytes": max(tier.slabs.space_used_bytes(number) for tier in state.tiers),
                    "hits": counters.dataset_hits[space.name], "misses": counters.dataset_misses[space.name],
                }  # fmt: skip
        return found

    def _set_options(self, space: Space) -> None:
        own_options = self._node.origins.own_options
        options = origin_options.place(space.url or "", space.endpoint, space.region)
        if options:
            own_options.set(space.name, options)
        else:
            own_options.forget(space.name)

    def save(self) -> None:
        """What was put or removed is known after a restart."""
        with self._node.step() as state:
            declared = {space.name: space for space in state.spaces if space.url is not None}
        declared_datasets.save(self._node.config.state_directory, declared.values())

    def _take_over_number(self, state: NodeState, name: str) -> None:
        """A space's number is 16 bits of each block: what is removed for good gives its own back."""
        for number, since in self._removed.items():
            empty = not any(tier.slabs.space_used_bytes(number) for tier in state.tiers)
            if empty and time.monotonic() - since > _REUSE_S:
                state.spaces[number] = msgspec.structs.replace(state.spaces[number], name=name)
                return

    def _drop_blocks(self, number: int) -> None:
        """One slab under each hold of the lock."""
        for tier in self._node.state.tiers:
            with self._node.step():
                slabs = list(tier.slabs.slabs_of(number))
            for slab in slabs:
                with self._node.step() as state:
                    if number not in self._removed:
                        return  # declared again meanwhile
                    if (tier.slabs.assignment(slab) or (None,))[0] != number:
                        continue
                    for entry in tier.entries(slab):
                        if entry != index.NONE:
                            state.drop(entry, erase=True)


def _number_of(state: NodeState, name: str) -> int | None:
    return next((number for number, space in enumerate(state.spaces) if space.name == name), None)


def _is_elsewhere(before: Space, now: Space) -> bool:
    """Whether what was said of objects need not hold any more."""
    return (before.url, before.endpoint, before.region, before.include, before.exclude) != (
        now.url, now.endpoint, now.region, now.include, now.exclude
    )  # fmt: skip

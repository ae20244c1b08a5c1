"""Grants: blocks in shared memory that this process may look at, and whose views are alive.

A grant is the node's lease to this client on one block in a mapped segment. Reads under it are plain function calls and
send nothing. Whether a view of it is alive is asked of its exporter (see shoal_transport.mapping); the node may ask for
an idle grant back at any time, so every use happens under `lock` or on an exporter that was made under it.

The node numbers a client's leases. Grants come in on many connections, releases go out on others, and they may pass
each other: a grant whose number was given back while its reply was still under way is dead on arrival, and is asked for
again (`add`); a release that the node reads after it granted the block anew names an old number and is void there. So
saying "released" twice, or of a lease one never heard of, harms nobody, and whatever was lost with a broken connection
is put right when the node asks for it.

Idle grants beyond the node's limit per client go back oldest first, touched ones after another round. What goes back,
and how often each grant was hit, rides on the next request or on the next tick.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

from shoal_core.errors import ProtocolError
from shoal_core.verbs import get
from shoal_transport.mapping import Mapping

_PASSES_MAX = 256
"""Grants that one search for room gives another round; the search stays below 100 us."""

_GIVEN_BACK_MIN = 256
"""Numbers given back that are kept before those too old to matter are looked for."""


_ENDED_MIN = 256
"""Grants given back that stay in the order of use beyond as many as are held."""


class Grant:
    """One leased block. `memory` is the block's bytes, read-only."""

    __slots__ = (
        "_exporter", "entry", "generation", "holder", "key", "lease", "mapping",
        "memory", "offset", "recent", "touches",
    )  # fmt: skip

    def __init__(self, key: tuple[bytes, int], answer: get.Grant, mapping: Mapping, holder: object) -> None:
        self.key = key
        """(fingerprint, block)"""
        self.mapping = mapping
        self.holder = holder
        """What keeps the lease: it goes with every view."""
        if answer.offset < 0 or answer.offset + answer.length > mapping.size:
            raise ProtocolError("get: a grant outside its segment")
        self.offset = answer.offset
        self.memory = mapping.memory[answer.offset : answer.offset + answer.length]
        self.entry = answer.entry
        self.generation = answer.generation
        self.lease = answer.lease
        self.touches = 0
        """Hits not yet reported to the node."""
        self.recent = False
        self._exporter: weakref.ref[Any] | None = None

    @property
    def live(self) -> bool:
        """Whether a view of this grant exists somewhere."""
        return self._exporter is not None and self._exporter() is not None

    def view(self) -> memoryview:
        """A read-only view of the block. While it or any slice of it lives, so does the lease."""
        exporter = self._exporter() if self._exporter is not None else None
        if exporter is None:
            exporter = self.mapping.exporter(self.offset, len(self.memory))
            exporter.holder = self.holder  # type: ignore[attr-defined]
            self._exporter = weakref.ref(exporter)
        whole = memoryview(exporter).cast("B").toreadonly()
        return whole if len(whole) == len(self.memory) else whole[: len(self.memory)]


class Grants:
    """All grants of one client in one process. Callers hold `lock` around everything here."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_key: dict[tuple[bytes, int], Grant] = {}
        self._by_entry: dict[int, Grant] = {}
        """Every lease that is held, also those whose key has another grant by now."""
        self.leased_bytes = 0
        self.leased_bytes_max = 0
        self.touched: list[Grant] = []
        self.released: list[tuple[int, int]] = []
        """Given back here, not yet reported."""
        self._holder: object = None
        self._order: deque[Grant] = deque()
        self._asked: dict[Grant, None] = {}
        """To be given back as soon as their views have ended; asked for again and again, each is here once."""
        self._gets: dict[int, None] = {}
        """Requests under way that may bring grants, oldest first."""
        self._get_count = 0
        self._given_back: dict[int, tuple[int, int]] = {}
        """By entry: the last number given back, and the number of gets that had begun by then."""
        self._given_back_max = _GIVEN_BACK_MIN

    def attach(self, holder: object, leased_bytes_max: int) -> None:
        """Leases of `holder` are taken in from now on."""
        self.forget_all()
        self._holder = holder
        self.leased_bytes_max = leased_bytes_max

    def begin_get(self) -> int:
        """A request that may bring grants is about to be sent; `end_get` with this number when all were added."""
        self._get_count += 1
        self._gets[self._get_count] = None
        return self._get_count

    def end_get(self, number: int) -> None:
        self._gets.pop(number, None)
        if not self._gets:
            self._given_back.clear()
        elif len(self._given_back) > self._given_back_max:
            oldest = next(iter(self._gets))
            self._given_back = {entry: kept for entry, kept in self._given_back.items() if kept[1] >= oldest}
            self._given_back_max = max(_GIVEN_BACK_MIN, 2 * len(self._given_back))

    def add(self, grant: Grant) -> Grant | None:
        """Take a new grant in. If another thread brought the same lease meanwhile, that one stays.

        None: it is dead, given back before it arrived, or its node is gone. Its bytes are not to be used.
        """
        if grant.holder is not self._holder:
            return None
        given_back = self._given_back.get(grant.entry)
        if given_back is not None and grant.lease <= given_back[0]:
            return None
        held = self._by_entry.get(grant.entry)
        if held is not None and held.key == grant.key:
            held.lease = max(held.lease, grant.lease)
            return self.by_key.setdefault(grant.key, held)
        if held is not None:
            return None  # the entry has another block by now: this grant is the older one
        displaced = self.by_key.get(grant.key)
        if displaced is not None:
            self._give_back(displaced)
        self.by_key[grant.key] = self._by_entry[grant.entry] = grant
        self._order.append(grant)
        if len(self._order) > 2 * len(self._by_entry) + _ENDED_MIN:
            # Most in it were given back, and only the search for room would come past them.
            self._order = deque(each for each in self._order if self._by_entry.get(each.entry) is each)
        self.leased_bytes += len(grant.memory)
        return grant

    def touch(self, grant: Grant) -> None:
        """Count one hit."""
        if not grant.touches:
            self.touched.append(grant)
            grant.recent = True
        grant.touches += 1

    def make_room(self, size: int) -> None:
        """Give idle grants back until `size` more bytes fit the limit, as far as there are any."""
        passes = _PASSES_MAX
        while passes and self._order and self.leased_bytes + size > self.leased_bytes_max:
            grant = self._order.popleft()
            if self.by_key.get(grant.key) is not grant:
                continue
            if grant.recent or grant.live:
                passes -= 1
                grant.recent = False
                self._order.append(grant)
            else:
                self._forget(grant)

    def revoke(self, wanted: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The node asks these leases back: (released, busy)."""
        released: list[tuple[int, int]] = []
        busy: list[tuple[int, int]] = []
        for entry, lease in wanted:
            grant = self._by_entry.get(entry)
            if grant is not None and grant.live:
                busy.append((entry, lease))
                self._asked[grant] = None
                continue
            if grant is not None:
                lease = max(lease, grant.lease)
                self._forget(grant, report=False)
            self._note_given_back(entry, lease)
            released.append((entry, lease))
        return released, busy

    def give_back_soon(self, grant: Grant) -> None:
        """With the next report, unless somebody looks at it then."""
        self._asked[grant] = None

    @property
    def to_report(self) -> bool:
        """Whether there is anything to tell the node."""
        return bool(self.touched or self.released) or any(not grant.live for grant in self._asked)

    def report(self) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """(released, touches) since the last report; what was asked back and is idle by now is among the released."""
        for grant in [grant for grant in self._asked if not grant.live]:
            del self._asked[grant]
            self._forget(grant)
        released, self.released = self.released, []
        touches = [(grant.entry, grant.generation, grant.touches) for grant in self.touched]
        for grant in self.touched:
            grant.touches = 0
        self.touched = []
        return released, touches

    def forget_all(self) -> None:
        """The node is gone or the client closes: nothing may be used any more, and nothing is taken in."""
        self._holder = None
        self.by_key.clear()
        self._by_entry.clear()
        self._order.clear()
        self._asked.clear()
        self._given_back.clear()
        self.touched.clear()
        self.released.clear()
        self.leased_bytes = 0

    def reset_after_fork(self) -> None:
        """In a forked child: leases are the parent's, and so is whoever held the lock."""
        self.lock = threading.Lock()
        self.forget_all()
        self._gets.clear()

    def forget_key(self, key: tuple[bytes, int]) -> None:
        """Nobody finds the block here any more, for instance after an evict; its lease ends with its last view."""
        grant = self.by_key.get(key)
        if grant is not None:
            self._give_back(grant)

    def _give_back(self, grant: Grant) -> None:
        """Now, or when its last view has ended."""
        if self.by_key.get(grant.key) is grant:
            del self.by_key[grant.key]
        if grant.live:
            self._asked[grant] = None
        else:
            self._forget(grant)

    def _forget(self, grant: Grant, report: bool = True) -> None:
        if self.by_key.get(grant.key) is grant:
            del self.by_key[grant.key]
        if self._by_entry.get(grant.entry) is not grant:
            return  # given back already
        del self._by_entry[grant.entry]
        self.leased_bytes -= len(grant.memory)
        if report:
            self.released.append((grant.entry, grant.lease))
            self._note_given_back(grant.entry, grant.lease)

    def _note_given_back(self, entry: int, lease: int) -> None:
        if self._gets:
            before = self._given_back.get(entry, (0, 0))[0]
            self._given_back[entry] = max(before, lease), self._get_count

"""Queues of entries, linked through flat arrays.

All eviction policies of a tier share one `Links`, since an entry is in one policy of a tier at most: 13 bytes an entry,
12 more once any policy has a TTL. A queue is then three numbers, so a policy for each space and class costs little. An
entry's cells belong to the policy that it was inserted in; their contents mean nothing outside of a queue.
"""

from array import array

NONE = 0xFFFFFFFF
"""No entry."""

COUNT = 3
"""Bits of a mark that count touches or looks, up to 3."""

SECOND = 4
"""Bit of a mark: the entry is in the second queue of its policy."""

KNOWN = 8
"""Bit of a mark: the entry's next use is known, and stands where its time of queueing stood (see `next_use`)."""


class Links:
    """Per-entry state of all policies of a tier."""

    __slots__ = ("born_s", "mark", "next", "next_born", "previous", "previous_born", "queued_s")

    def __init__(self, capacity: int = 0) -> None:
        self.previous = array("I")
        """Towards the tail, the older entry."""
        self.next = array("I")
        """Towards the head, the younger entry."""
        self.queued_s = array("I")
        """When the entry came to the head of its queue, what `oldest_s` reports; its next use where that is known."""
        self.mark = array("B")
        self.previous_born: array[int] | None = None
        self.next_born: array[int] | None = None
        self.born_s: array[int] | None = None
        self.grow(capacity)

    @property
    def capacity(self) -> int:
        return len(self.mark)

    @property
    def memory_bytes(self) -> int:
        return sum(len(column) * column.itemsize for column in self._columns())

    def grow(self, capacity: int) -> None:
        """Entries below `capacity` may be used from now on. Arrays grow in place."""
        for column in self._columns():
            column.frombytes(bytes(max(capacity - len(column), 0) * column.itemsize))

    def births(self) -> tuple["array[int]", "array[int]", "array[int]"]:
        """The links and times in order of insertion: made when the first policy with a TTL asks."""
        if self.previous_born is None or self.next_born is None or self.born_s is None:
            self.previous_born = array("I", [0]) * self.capacity
            self.next_born = array("I", [0]) * self.capacity
            self.born_s = array("I", [0]) * self.capacity
        return self.previous_born, self.next_born, self.born_s

    def _columns(self) -> "list[array[int]]":
        columns = (self.previous, self.next, self.queued_s, self.mark)
        births = (self.previous_born, self.next_born, self.born_s)
        return [*columns, *(column for column in births if column is not None)]


class Queue:
    """Entries from the oldest (tail) to the youngest (head), linked through two arrays."""

    __slots__ = ("_next", "_previous", "head", "length", "tail")

    def __init__(self, previous: "array[int]", following: "array[int]") -> None:
        self._previous = previous
        self._next = following
        self.head = NONE
        self.tail = NONE
        self.length = 0

    def push(self, entry: int) -> None:
        """To the young end."""
        head = self.head
        self._previous[entry] = head
        self._next[entry] = NONE
        if head == NONE:
            self.tail = entry
        else:
            self._next[head] = entry
        self.head = entry
        self.length += 1

    def push_last(self, entry: int) -> None:
        """To the old end."""
        tail = self.tail
        self._previous[entry] = NONE
        self._next[entry] = tail
        if tail == NONE:
            self.head = entry
        else:
            self._previous[tail] = entry
        self.tail = entry
        self.length += 1

    def append(self, other: "Queue") -> None:
        """All of another queue to the young end, in O(1); the other is not to be used any more."""
        if not self.length:
            self.head, self.tail = other.head, other.tail
        elif other.length:
            self._next[self.head] = other.tail
            self._previous[other.tail] = self.head
            self.head = other.head
        self.length += other.length

    def drop(self, entry: int) -> None:
        previous, following = self._previous[entry], self._next[entry]
        if previous == NONE:
            self.tail = following
        else:
            self._next[previous] = following
        if following == NONE:
            self.head = previous
        else:
            self._previous[following] = previous
        self.length -= 1


class Timed:
    """The TTL part of every policy: a queue in order of insertion, absent without a TTL."""

    __slots__ = ("_births", "_born_s", "_links", "_mark", "_next_born", "_queued_s", "ttl_s")

    def __init__(self, links: Links, ttl_s: int | None = None) -> None:
        self._links = links
        self._mark = links.mark
        self._queued_s = links.queued_s
        self.ttl_s = ttl_s
        self._births: Queue | None = None
        if ttl_s is not None:
            previous_born, self._next_born, self._born_s = links.births()
            self._births = Queue(previous_born, self._next_born)

    def expired(self, now_s: int, count_max: int = 256) -> list[int]:
        found: list[int] = []
        if self._births is not None and self.ttl_s is not None:
            entry = self._births.tail
            while entry != NONE and len(found) < count_max and self._born_s[entry] + self.ttl_s <= now_s:
                found.append(entry)
                entry = self._next_born[entry]
        return found

    def sort_births(self) -> None:
        """Oldest first again, after a recovery that found entries in the order of their slots."""
        births = self._births
        if births is None:
            return
        entries: list[int] = []
        while births.length:
            entries.append(births.tail)
            births.drop(births.tail)
        for entry in sorted(entries, key=self._born_s.__getitem__):
            births.push(entry)

    def birth(self, entry: int, now_s: int) -> None:
        if self._births is not None:
            self._born_s[entry] = now_s
            self._births.push(entry)

    def forget_birth(self, entry: int) -> None:
        if self._births is not None:
            self._births.drop(entry)

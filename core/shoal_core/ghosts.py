"""Keys lately evicted, as 4-byte cells in one flat array.

S3-FIFO asks of a newcomer: was it here shortly before? As in the paper's implementation the answer is a table of
fingerprints with the time of eviction, counted in evictions; a ring beside it is not needed. A hash names a pair of
cells; a cell is 16 bits of fingerprint and 16 bits of time in ticks of about a thousandth of the ghosts' lifetime. The
older cell of a pair gives way, so some ghosts are lost early, and one newcomer in 30,000 is wrongly taken for a
ghost: either costs a little hit ratio and nothing else. Ticks wrap after at least 32 lifetimes, when nearly every
cell has been written again.
"""

from array import array

_TICKS = 1024
"""Clock ticks while as many keys are evicted as there are cells."""

_TIME = 0xFFFF


class Ghosts:
    """The last evicted keys, about as many as asked for; 4 to 8 bytes each."""

    __slots__ = ("_cells", "_clock", "_mask", "_tick", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = max(1 << (capacity - 1).bit_length(), 16)
        """For lifetimes up to this many evictions. The owner that grows beyond makes a new, empty table."""
        self._cells = array("I", [0]) * self.capacity
        self._mask = self.capacity - 1
        self._tick = max(self.capacity // _TICKS, 1)
        self._clock = 0

    @property
    def memory_bytes(self) -> int:
        return len(self._cells) * self._cells.itemsize

    def add(self, key_hash: int) -> None:
        """One more key was evicted."""
        self._clock += 1
        now = self._clock // self._tick
        cells = self._cells
        position = key_hash & self._mask
        # An empty cell is 0, so a fingerprint is not: its age then does not matter.
        fingerprint = (key_hash >> 40 & 0xFFFF) or 1
        first, second = cells[position], cells[position ^ 1]
        if second >> 16 == fingerprint or not (
            first >> 16 == fingerprint or not first or (second and (now - first & _TIME) >= (now - second & _TIME))
        ):
            position ^= 1
        cells[position] = fingerprint << 16 | now & _TIME

    def take(self, key_hash: int, lifetime: int) -> bool:
        """Whether the key is among the last `lifetime` evicted ones; it is forgotten by that."""
        cells = self._cells
        position = key_hash & self._mask
        fingerprint = (key_hash >> 40 & 0xFFFF) or 1
        if cells[position] >> 16 != fingerprint:
            position ^= 1
            if cells[position] >> 16 != fingerprint:
                return False
        age = self._clock // self._tick - cells[position] & _TIME
        cells[position] = 0
        return age * self._tick <= lifetime

"""Why a block is not here any more: the last thing that is known of each key that left or could not be brought.

For people who ask (`explain`, `warm`), so it is kept cheaply and may be incomplete: a table of a fixed number of rows,
the key names its row, and a later key of the same row takes it over. Nothing is searched, nothing grows. A key is told
from others by its first 8 bytes, which two keys share once in 2^64. A block that is here again keeps its old row: ask
only for what is not here.
"""

from __future__ import annotations

from array import array

REASONS = ("evicted", "quota", "corrupt", "expired", "dropped", "near", "refused", "late", "failed")
"""evicted: made room; quota: its space had more than it may; corrupt: its bytes were not good; expired: its time was
over; dropped: by command; near: a near copy that gave way; refused: there was no room for it; late: its fill did not
end in time; failed: the origin answered with an error."""

_NUMBERS = {reason: number for number, reason in enumerate(REASONS, 1)}

ROWS = 1 << 16
"""13 bytes each, 832 KiB in all. A node that loses a thousand blocks a second answers for the last minute."""


class Endings:
    """One for the whole node. Guarded by the node's lock."""

    def __init__(self) -> None:
        self._keys = array("Q", bytes(8 * ROWS))
        self._reasons = array("B", bytes(ROWS))
        """0: nothing was noted in this row."""
        self._times_s = array("I", bytes(4 * ROWS))

    @property
    def memory_bytes(self) -> int:
        return sum(len(column) * column.itemsize for column in (self._keys, self._reasons, self._times_s))

    def note(self, key: bytes, reason: str, now_s: float) -> None:
        """The block went, or did not come, for one of REASONS; what was known of the key before is forgotten."""
        low = int.from_bytes(key[:8], "little")
        row = low % ROWS
        self._reasons[row] = _NUMBERS[reason]
        self._keys[row] = low
        self._times_s[row] = int(now_s)

    def why(self, key: bytes) -> tuple[str, int] | None:
        """The last reason and when that was; None: not known, or not any more."""
        low = int.from_bytes(key[:8], "little")
        row = low % ROWS
        number = self._reasons[row]
        if not number or self._keys[row] != low:
            return None
        return REASONS[number - 1], self._times_s[row]

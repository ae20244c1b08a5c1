"""A keyed permutation of range(n) that needs no memory: which item stands where is computed, in both directions.

Numbers are written as (row, column) of a grid of about sqrt(n) x sqrt(n). In each round one of the two is moved by a
keyed function of the other, modulo its range, which can be undone by moving it back: a Feistel network whose halves
need not be powers of two (J. Black, P. Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002, the third of its
methods). The grid has a few cells more than n; a number that lands on one of these goes through the network again
until it does not ("cycle walking", the second), which keeps the map a permutation of range(n). It mixes; it hides
nothing.

Every function takes a single int, or an array of int64 of any library with Python's operators (a torch tensor), and
gives the same. Keys may be arrays too (`family`), so that one call serves numbers of many permutations.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

_ROUNDS = 8
_ROUNDS_SMALL = 24
_SMALL = 1 << 10
"""Below so many numbers the halves are a few cells, and 8 rounds show some orders several times as often as others
(tests/core/test_permutation.py). Both counts are even."""

_WORD = 0xFFFFFFFF


def round_keys(*parts: bytes) -> tuple[int, ...]:
    """Keys of one permutation, from whatever names it; different parts give independent permutations."""
    state = hashlib.shake_128()
    for part in parts:
        # Length prefixes make the encoding injective: ("ab", "c") and ("a", "bc") differ.
        state.update(len(part).to_bytes(4, "little"))
        state.update(part)
    digest = state.digest(4 * _ROUNDS_SMALL)
    return tuple(int.from_bytes(digest[start : start + 4], "little") for start in range(0, len(digest), 4))


def family(keys: tuple[int, ...], member: Any, size: int) -> tuple[Any, ...]:
    """Keys of one of many permutations of `size` items that share `keys`: number `member` of them."""
    return tuple(_mix(member & _WORD, key) for key in keys[: _rounds(size)])


def _rounds(size: int) -> int:
    return _ROUNDS_SMALL if size < _SMALL else _ROUNDS


def forward(position: Any, size: int, keys: tuple[Any, ...]) -> Any:
    """The item at a position; both are in range(size), and 0 < size <= 2**62."""
    return _walk(position, size, keys, _encrypt)


def backward(item: Any, size: int, keys: tuple[Any, ...]) -> Any:
    """The position of an item."""
    return _walk(item, size, keys, _decrypt)


def _walk(number: Any, size: int, keys: tuple[Any, ...], step: Any) -> Any:
    rows = math.isqrt(size - 1) + 1  # 1 of size 1
    columns = -(-size // rows)
    keys = keys[: _rounds(size)]
    number = step(number, rows, columns, keys)
    while anywhere(outside := number >= size):
        inside = 1 - 1 * outside
        number = number * inside + step(number, rows, columns, keys) * outside
    return number


def _encrypt(number: Any, rows: int, columns: int, keys: tuple[Any, ...]) -> Any:
    row, column = number // columns, number % columns
    for turn in range(0, len(keys), 2):
        row = (row + _mix(column, keys[turn])) % rows
        column = (column + _mix(row, keys[turn + 1])) % columns
    return row * columns + column


def _decrypt(number: Any, rows: int, columns: int, keys: tuple[Any, ...]) -> Any:
    row, column = number // columns, number % columns
    for turn in range(len(keys) - 2, -1, -2):
        column = (column - _mix(row, keys[turn + 1])) % columns
        row = (row - _mix(column, keys[turn])) % rows
    return row * columns + column


def _mix(number: Any, key: Any) -> Any:
    """32 bits of a number below 2**32 and a key: two rounds of multiply and xor-shift.

    The constants are those of `lowbias32` (Chris Wellons, hash-prospector, public domain). An array of int64 overflows
    in the products, which leaves their lower 32 bits as they are.
    """
    number = ((number ^ key) * 0x7FEB352D) & _WORD
    number = ((number ^ (number >> 15)) * 0x846CA68B) & _WORD
    return number ^ (number >> 16)


def anywhere(flags: Any) -> bool:
    """Whether it is true, of a bool; whether any is, of an array."""
    return flags if isinstance(flags, bool) else bool(flags.any())

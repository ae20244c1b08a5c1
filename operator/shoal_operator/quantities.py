"""Sizes: Kubernetes quantities ("4Gi", "500G", "1.5Ti", "1e9", "4096") to bytes and back.

A size is a whole number of bytes. Text that comes out to a fraction of a byte is rounded up, as Kubernetes does it.
What is written for people has at most three digits and a binary unit, and is never more than what it says.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext

_UNITS = {
    "": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(1 << 10), "Mi": Decimal(1 << 20), "Gi": Decimal(1 << 30), "Ti": Decimal(1 << 40),
    "Pi": Decimal(1 << 50), "Ei": Decimal(1 << 60),
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)")
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


class Quantity(int):
    """Bytes that a person wrote as a Kubernetes quantity."""


def amount(value: object) -> Decimal | None:
    """The number that a quantity stands for; None when it is none."""
    if isinstance(value, bool):
        return None
    match = _QUANTITY.fullmatch(str(value).strip()) if isinstance(value, int | float | str) else None
    if match is None:
        return None
    return Decimal(match[1]) * (Decimal(10) ** int(match[2]) if match[2] else _UNITS[match[3] or ""])


def parse(value: object) -> Quantity:
    """Bytes; ValueError says what is allowed."""
    number = amount(value)
    if number is None or number < 0:
        raise ValueError(f'{value!r} is not a size such as "4Gi" or "500G"')
    with localcontext() as context:
        context.prec = 60
        return Quantity(number.to_integral_value(ROUND_CEILING))


def shown(size_bytes: int) -> str:
    """For people: "6Ti", "1.2Gi", "512". Cut off, not rounded up: a cache never looks larger or fuller than it is."""
    power = min(max(size_bytes.bit_length() - 1, 0) // 10, len(_BINARY) - 1)
    whole, rest = divmod(size_bytes, 1 << 10 * power)
    tenth = rest * 10 >> 10 * power
    return f"{whole}.{tenth}{_BINARY[power]}" if tenth and whole < 100 else f"{whole}{_BINARY[power]}"


def percent(part: int, whole: int, digits: int = 0) -> str:
    """ "45%", cut off, so that 100% means all of it; "" where there is no whole."""
    if whole <= 0:
        return ""
    scaled = min(part, whole) * 100 * 10**digits // whole
    if not digits:
        return f"{scaled}%"
    return f"{scaled // 10**digits}.{scaled % 10**digits:0{digits}}%"

"""Numbers as people read them: three digits and a unit, so that columns stay narrow and compare at a glance.

Sizes are binary (GiB, as budgets are given), rates decimal (GB/s, as links and disks are sold). A percentage is cut,
not rounded: 100 % means all of it.
"""

from __future__ import annotations


def size(count: float) -> str:
    """12_897_484 -> '12.3 MiB'."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def rate(bytes_per_s: float) -> str:
    """12_900_000 -> '12.9 MB/s'."""
    return _scaled(bytes_per_s, 1000, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s"))


def frequency(per_s: float) -> str:
    """12_900 -> '12.9 k/s'."""
    return _scaled(per_s, 1000, ("/s", "k/s", "M/s", "G/s"))


def number(count: int) -> str:
    return f"{count:,}"


def percent(part: float, whole: float) -> str:
    """'-' where there is nothing to be a part of."""
    if whole <= 0:
        return "-"
    if part <= 0:
        return "0 %"
    share = int(100 * part / whole)
    return f"{share} %" if share else "<1 %"


def duration(seconds: float) -> str:
    """7_500 -> '2 h 5 min': the two largest units."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
    left = int(seconds)
    parts: list[str] = []
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if left >= length and len(parts) < 2:
            parts.append(f"{left // length} {unit}")
            left %= length
        elif parts:
            break
    return " ".join(parts)


def age(seconds: float) -> str:
    """kubectl's way: 45s, 12m, 3h, 9d."""
    whole = max(0, int(seconds))
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if whole >= 2 * length:
            return f"{whole // length}{unit}"
    return f"{whole}s"


def _scaled(value: float, step: int, names: tuple[str, ...]) -> str:
    magnitude = float(value)
    for name in names[:-1]:
        # Below 999.5 so that rounding to three digits never prints 1000 of the smaller unit.
        if abs(magnitude) < 999.5:
            return f"{_three_digits(magnitude, whole=name == names[0] and value == int(value))} {name}"
        magnitude /= step
    return f"{_three_digits(magnitude)} {names[-1]}"


def _three_digits(value: float, *, whole: bool = False) -> str:
    if whole or abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"

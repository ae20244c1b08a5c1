"""Names of files that follow a pattern, as a shell writes them: `shard-{000..099}.tar`, `{train,extra}/{0..9}.tar`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from shoal_core.errors import BadRequest

_NAMES_MAX = 10_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def chosen(names: str | Iterable[str]) -> Iterable[str]:
    """The names themselves, or those that a pattern stands for."""
    return expanded(names) if isinstance(names, str) else names


def expanded(pattern: str) -> Iterable[str]:
    """Every name, the last braces changing fastest. A number is as wide as the first of its range, zeros in front."""
    texts = _BRACES.split(pattern)
    if any("{" in text or "}" in text for text in texts[::2]):
        raise BadRequest(f"names: {pattern!r} has braces in braces, or without their other half")
    choices = [_choices(text, pattern) if position % 2 else [text] for position, text in enumerate(texts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _NAMES_MAX:
        raise BadRequest(f"names: {pattern!r} stands for {count} names; at most {_NAMES_MAX}")
    return map("".join, itertools.product(*choices))


def _choices(text: str, pattern: str) -> Sequence[str]:
    if (bounds := _RANGE.fullmatch(text)) is not None:
        first, last = int(bounds[1]), int(bounds[2])
        if last < first or last - first >= _NAMES_MAX:
            raise BadRequest(f"names: {pattern!r} counts from {first} to {last}")
        return [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    if "," not in text:
        raise BadRequest(f"names: {{{text}}} in {pattern!r} is neither a range such as {{000..099}} nor a list {{a,b}}")
    return text.split(",")

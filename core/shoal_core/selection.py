"""Which objects belong to a data set: patterns of paths below its URL, those it includes and those it leaves out.

A pattern is compared with the whole path, segment by segment: `*`, `?` and `[abc]` stand for characters of one segment,
`**` as a segment for any number of segments, none too; `train/` is short for `train/**`. A path belongs when some
`include` matches, or there is none, and no `exclude` does. Patterns come from whoever may make a data set, and are
matched in time that is bounded by pattern times path: no pattern can keep a node busy.
"""

import fnmatch
import functools
import re
from collections.abc import Sequence

from shoal_core.errors import ConfigError

PATTERNS_MAX = 64
PATTERN_CHARACTERS_MAX = 256

_MANY = None
"""Stands for `**` among compiled segments."""


class Selection:
    """`include` and `exclude` of one data set."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = [(pattern, _compiled(pattern)) for pattern in include]
        self._exclude = [(pattern, _compiled(pattern)) for pattern in exclude]

    @property
    def is_all(self) -> bool:
        """Nothing is left out."""
        return not self._include and not self._exclude

    def refusal(self, path: str) -> str:
        """Why the path does not belong to the data set; '' when it does."""
        if self.is_all:
            return ""
        segments = path.split("/")
        for pattern, compiled in self._exclude:
            if _matches(compiled, segments):
                return f"the data set excludes {pattern!r}"
        if self._include and not any(_matches(compiled, segments) for _, compiled in self._include):
            return f"the data set includes only {', '.join(repr(pattern) for pattern, _ in self._include[:4])}"
        return ""


@functools.lru_cache(1024)
def of(include: tuple[str, ...], exclude: tuple[str, ...]) -> Selection:
    """The same object for the same patterns."""
    return Selection(include, exclude)


def check(path: str, patterns: Sequence[str]) -> None:
    """ConfigError, naming the field `path`, for what is no list of patterns."""
    if len(patterns) > PATTERNS_MAX:
        raise ConfigError(f"{path}: {len(patterns)} patterns; at most {PATTERNS_MAX}")
    for place, pattern in enumerate(patterns):
        segments = pattern.split("/")
        if not 0 < len(pattern) <= PATTERN_CHARACTERS_MAX:
            raise ConfigError(f"{path}[{place}]: a pattern has 1 to {PATTERN_CHARACTERS_MAX} characters")
        if "" in segments[:-1] or "." in segments or ".." in segments:
            raise ConfigError(
                f"{path}[{place}]: {pattern!r} is not relative to the data set's URL: no '/' at its start, no empty "
                "segments, no '.' or '..'"
            )


def _compiled(pattern: str) -> list[re.Pattern[str] | None]:
    segments = pattern.split("/")
    if segments[-1] == "":
        segments[-1] = "**"
    return [_MANY if segment == "**" else re.compile(fnmatch.translate(segment)) for segment in segments]


def _matches(pattern: list[re.Pattern[str] | None], segments: list[str]) -> bool:
    """As for `*` in one text: on a mismatch the last `**` takes one segment more, earlier ones need not."""
    place = at = 0
    many, resume = -1, 0
    while at < len(segments):
        if place < len(pattern) and pattern[place] is _MANY:
            many, resume = place, at
            place += 1
            continue
        segment = pattern[place] if place < len(pattern) else _MANY
        if segment is not None and segment.match(segments[at]):
            place += 1
            at += 1
        elif many >= 0:
            resume += 1
            place, at = many + 1, resume
        else:
            return False
    return all(rest is _MANY for rest in pattern[place:])

"""Patterns of a data set's objects: what they match, and that none of them takes long."""

import fnmatch
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core import selection
from shoal_core.errors import ConfigError
from shoal_core.selection import Selection

CASES = [
    ("*.tar", "a.tar", True),
    ("*.tar", "train/a.tar", False),
    ("**/*.tar", "a.tar", True),
    ("**/*.tar", "train/x/a.tar", True),
    ("train/**/*.tar", "train/a.tar", True),
    ("train/**/*.tar", "train/x/y/a.tar", True),
    ("train/**/*.tar", "train/x/y/a.txt", False),
    ("train/**/*.tar", "other/train/a.tar", False),
    ("train/**", "train/a", True),
    ("train/**", "training/a", False),
    ("train/", "train/a/b", True),
    ("train/", "train", True),
    ("shard-?.tar", "shard-1.tar", True),
    ("shard-?.tar", "shard-10.tar", False),
    ("shard-[0-3].tar", "shard-2.tar", True),
    ("shard-[!0-3].tar", "shard-2.tar", False),
    ("**", "any/thing", True),
    ("a/**/b/**/c", "a/x/b/y/b/z/c", True),
    ("a/**/b/**/c", "a/x/c", False),
    ("a.b", "axb", False),
    ("A", "a", False),
]


@pytest.mark.parametrize(("pattern", "path", "matches"), CASES)
def test_pattern(pattern: str, path: str, matches: bool) -> None:
    assert (Selection([pattern], []).refusal(path) == "") is matches
    assert (Selection([], [pattern]).refusal(path) != "") is matches


def test_exclude_goes_before_include_and_says_why() -> None:
    chosen = Selection(["train/**", "test/**"], ["**/*.tmp"])
    assert chosen.refusal("train/a") == ""
    assert chosen.refusal("train/a.tmp") == "the data set excludes '**/*.tmp'"
    assert chosen.refusal("x/a") == "the data set includes only 'train/**', 'test/**'"
    assert Selection([], []).is_all and not chosen.is_all
    assert selection.of((), ()) is selection.of((), ())


SEGMENTS = st.lists(st.sampled_from(["a", "b", "**"]), min_size=1, max_size=5)
PATHS = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5)


def _slow(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_slow(pattern[1:], path[taken:]) for taken in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _slow(pattern[1:], path[1:])


@given(SEGMENTS, PATHS)
def test_as_trying_everything_says(pattern: list[str], path: list[str]) -> None:
    assert (Selection(["/".join(pattern)], []).refusal("/".join(path)) == "") is _slow(pattern, path)


def test_no_pattern_takes_long() -> None:
    mean = ["*a" * 100 + "b", "/".join(["**", "a"] * 60) + "/b", "/".join(["**"] * 100) + "/b"]
    paths = ["a" * 1000, "/".join(["a"] * 500)]
    start = time.monotonic()
    for pattern, path in itertools.product(mean, paths):
        assert Selection([pattern], []).refusal(path)
    assert time.monotonic() - start < 5.0


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (["/a"], r"f\[0\]: '/a' is not relative"),
        (["a", "a//b"], r"f\[1\]: 'a//b' is not relative"),
        (["../a"], "is not relative"),
        ([""], "1 to 256 characters"),
        (["a" * 257], "1 to 256 characters"),
        (["a"] * 65, "f: 65 patterns; at most 64"),
    ],
)
def test_what_is_no_pattern(patterns: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        selection.check("f", patterns)


def test_patterns_that_are_fine() -> None:
    selection.check("f", ["a", "**/b", "train/"])

"""A skip that nobody foresaw is an excess; so is one too many of a foreseen kind."""

from tests.support import skips
from tests.support.skips import Allowance

GPU = Allowance(reason="no GPU.*", count=2, why="the GPU machines run them")


def test_foreseen_skips_are_no_excess() -> None:
    assert skips.excess({"no GPU on this machine": 1, "no GPU driver": 1}, [GPU]) == []


def test_one_more_than_allowed_is_an_excess() -> None:
    assert skips.excess({"no GPU on this machine": 2, "no GPU driver": 1}, [GPU]) == ["3 skipped, 2 allowed: no GPU.*"]


def test_an_unforeseen_reason_is_an_excess() -> None:
    (line,) = skips.excess({"was in a hurry": 1}, [GPU])
    assert "was in a hurry" in line


def test_the_file_in_the_repository_is_valid() -> None:
    assert all(item.count > 0 and item.why for item in skips.load())

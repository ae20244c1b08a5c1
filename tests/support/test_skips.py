"""A skip that nobody foresaw is an excess; so is one too many of a foreseen kind."""

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("strict", "exit_code"), [(True, 1), (False, 0)])
def test_a_strict_run_fails_on_an_unforeseen_skip_and_says_why(tmp_path: Path, strict: bool, exit_code: int) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\ndef test_it(): pytest.skip('was in a hurry')\n")
    program = (
        "import pytest, sys; from tests.support import skips; "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1]], plugins=[skips.Plugin(strict={strict})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        cwd=skips.FILE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "skipped 1: was in a hurry" in done.stdout

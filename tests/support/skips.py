"""The account of skipped tests: a skip says why, and CI allows only those that tests/skips.toml foresees.

A test that cannot run on some machine (no Go, no huge pages, no GPU) is skipped with a reason. Each reason has a line
in tests/skips.toml with the number of tests that may carry it. Any other skip, or one more than allowed, makes the run
fail where CI=true; elsewhere it is only printed.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

FILE = Path(__file__).resolve().parents[1] / "skips.toml"


class Allowance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str
    """A regular expression that the whole reason matches."""
    count: int
    why: str
    """What the machine lacks, and where the tests do run."""


def load(file: Path = FILE) -> list[Allowance]:
    return msgspec.convert(tomllib.loads(file.read_text()).get("allowed", []), list[Allowance])


def excess(skipped: Mapping[str, int], allowances: list[Allowance]) -> list[str]:
    """One line for each reason that is not foreseen, and for each allowance that is exceeded."""
    found: list[str] = []
    used: Counter[str] = Counter()
    for reason, count in skipped.items():
        match = next((item for item in allowances if re.fullmatch(item.reason, reason)), None)
        if match is None:
            found.append(f"{count} skipped, not foreseen in tests/skips.toml: {reason}")
        else:
            used[match.reason] += count
    return found + [
        f"{used[item.reason]} skipped, {item.count} allowed: {item.reason}"
        for item in allowances
        if used[item.reason] > item.count
    ]


class Plugin:
    """Collects the skips of one run, prints them, and fails the run where they are too many and `strict`."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.skipped: Counter[str] = Counter()
        self.excess: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        self.skipped[reason.removeprefix("Skipped: ")] += 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.excess = excess(self.skipped, load())
        if self.strict and self.excess and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for reason, count in sorted(self.skipped.items()):
            terminalreporter.write_line(f"skipped {count}: {reason}")
        for line in self.excess:
            terminalreporter.write_line(f"{'ERROR' if self.strict else 'note'}: {line}", red=self.strict)

"""The bar for long work: on a real terminal, after a while, and nowhere else."""

from __future__ import annotations

import io
import os
import pty
import select
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

pytest.importorskip("torch")

from shoal.torch.formats import progress

_MARK = "<end>"


class Terminal:
    """A pseudo-terminal in the place of standard error."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.stream: TextIO = os.fdopen(theirs, "w")

    def shown(self) -> str:
        """Everything that was written to it, found by a mark behind it."""
        self.stream.write(_MARK)
        self.stream.flush()
        text = ""
        while not text.endswith(_MARK):
            assert select.select([self._ours], [], [], 10.0)[0], "the terminal shows nothing"
            text += os.read(self._ours, 1 << 16).decode()
        return text.removesuffix(_MARK)

    def close(self) -> None:
        self.stream.close()
        os.close(self._ours)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    opened = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    yield opened
    opened.close()


def work() -> None:
    with progress.Progress("counting sheep", 10) as bar:
        for _ in range(10):
            bar.done(1)


def test_long_work_is_shown_on_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    work()
    shown = terminal.shown()
    assert "counting sheep" in shown
    assert "100%" in shown


def test_what_is_soon_done_is_not(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    work()
    assert terminal.shown() == ""


def test_elsewhere_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    work()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_bar_ends_with_the_error_that_ends_the_work(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal.stream)  # here: pytest sets its own between a fixture and the test

    def failing() -> None:
        with progress.Progress("counting sheep", 10) as bar:
            bar.done(1)
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        failing()
    assert terminal.shown().endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "the cursor is back, the line is clear"

"""One finding of `kubectl shoal doctor`: what was looked at, how it is, and what to do about it, in a line each."""

from __future__ import annotations

from typing import Literal, NamedTuple

Outcome = Literal["pass", "warn", "fail", "skip"]


class Check(NamedTuple):
    """`fail` means that something does not work, `warn` that it works less well, `skip` that it could not be tested."""

    name: str
    outcome: Outcome
    finding: str
    remedy: str = ""
    """What to do; empty when there is nothing to do."""
    node: str = ""
    """Of a node that looked at itself."""

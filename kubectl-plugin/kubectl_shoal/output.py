"""What all commands print with: columns as kubectl has them, JSON and YAML, and text that cannot command a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

BOLD, PLAIN, CLEAR = "\x1b[1m", "\x1b[0m", "\x1b[H\x1b[2J\x1b[3J"


def printable(text: str) -> str:
    """Names and messages come from the cluster's users: a terminal gets to see escape sequences, not to obey them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, nothing cut; '-' for what is empty."""
    cells = [[printable(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = ["   ".join(map(str.ljust, row, widths)).rstrip() for row in (list(header), *cells)]
    if sys.stdout.isatty():
        lines[0] = f"{BOLD}{lines[0]}{PLAIN}"
    return "\n".join(lines) + "\n"


def document(values: Any, form: str) -> str:
    """JSON or YAML."""
    if form == "json":
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def documents(values: Sequence[Any], form: str) -> str:
    """Several, as `kubectl apply -f -` takes them."""
    if form == "json":
        return document({"apiVersion": "v1", "kind": "List", "items": list(values)}, form)
    return "---\n".join(document(each, form) for each in values)


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A remark for the person, out of the way of the output."""
    print(f"kubectl shoal: {printable(text)}", file=sys.stderr)

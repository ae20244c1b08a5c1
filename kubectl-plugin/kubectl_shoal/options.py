"""The options that every subcommand has, before its name or after it, spelled as kubectl spells them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

FORMATS = ("table", "json", "yaml")
WITH_VALUE = ("-n", "--namespace", "--context", "--kubeconfig", "--system-namespace", "-o", "--output")


def add_everywhere(parser: argparse.ArgumentParser) -> None:
    """Without defaults: one that stands before the subcommand must not be undone by it."""
    group = parser.add_argument_group("options of every command")
    add = group.add_argument
    add("-n", "--namespace", metavar="NAME", default=argparse.SUPPRESS, help="instead of the context's own")
    add("--context", metavar="NAME", default=argparse.SUPPRESS, help="of the kubeconfig, instead of the current one")
    add("--kubeconfig", metavar="FILE", default=argparse.SUPPRESS, help="instead of KUBECONFIG or ~/.kube/config")
    add(
        "--system-namespace",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="where Shoal is installed; found by itself if you may list pods everywhere, else shoal-system",
    )
    add("-o", "--output", choices=FORMATS, default=argparse.SUPPRESS, help="how to print (default table)")


def defaults() -> argparse.Namespace:
    return argparse.Namespace(namespace=None, context=None, kubeconfig=None, system_namespace=None, output="table")


def command_of(words: Sequence[str]) -> str | None:
    """The subcommand on a command line that may be wrong elsewhere."""
    rest = iter(words)
    for word in rest:
        if word in WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            return word
        elif word == "--":
            return None
    return None


def add_watch(parser: argparse.ArgumentParser) -> None:
    """For commands that show how things are."""
    parser.add_argument("-w", "--watch", action="store_true", help="go on, and show what has changed")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=2.0, help="between looks with --watch (default 2)"
    )


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return value

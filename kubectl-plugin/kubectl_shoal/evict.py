"""kubectl shoal evict: drop objects from every tier of every node of their pool."""

from __future__ import annotations

import argparse

from kubectl_shoal import in_pod


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("urls", metavar="URL", nargs="+", help="an object, or what lies above some: shoal://images/cat")
    in_pod.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return in_pod.run(arguments, "evict", arguments.urls)

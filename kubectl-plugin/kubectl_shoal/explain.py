"""kubectl shoal explain: which node a read of a block goes to and why, or why it is missed, as one node finds it."""

from __future__ import annotations

import argparse

from kubectl_shoal import in_pod


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="an object: shoal://images/cat/1.jpg")
    parser.add_argument("--block", metavar="N", default="0", help="of its blocks, the first is 0 (default)")
    in_pod.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return in_pod.run(arguments, "explain", [arguments.url], f"--block={arguments.block}")

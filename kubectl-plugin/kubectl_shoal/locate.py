"""kubectl shoal locate: where the blocks of an object belong and which nodes hold them, asked of a node."""

from __future__ import annotations

import argparse

from kubectl_shoal import in_pod


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="an object: shoal://images/cat/1.jpg")
    parser.add_argument("--blocks", metavar="A-B", help="these blocks, one by one: 7, 0-99, 100-")
    parser.add_argument("--all", action="store_true", help="ask every node, not the owners alone")
    in_pod.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    flags = [f"--blocks={arguments.blocks}"] if arguments.blocks else []
    flags += ["--all"] if arguments.all else []
    return in_pod.run(arguments, "locate", [arguments.url], *flags, listed=True)  # blocks, however many they are

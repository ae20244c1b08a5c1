"""shoal serve: becomes the node, in this very process, so that signals and exit code are the node's own."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", required=True, help="TOML or JSON; the node has no other settings")


def run(arguments: argparse.Namespace) -> int:
    if find_spec("shoal_node") is not None:
        os.execv(sys.executable, [sys.executable, "-m", "shoal_node", "--config", arguments.config])
    print("shoal: serve: the node is not installed here; install shoal[node]", file=sys.stderr)
    return 1

"""shoal bench: hands over to the benchmarks, which are a package of their own."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec


def add_arguments(_: argparse.ArgumentParser) -> None:
    """None of ours: what follows goes to shoal_bench as it is."""


def run(arguments: argparse.Namespace) -> int:
    if find_spec("shoal_bench") is not None:
        os.execv(sys.executable, [sys.executable, "-m", "shoal_bench", *arguments.words])
    print("shoal: bench: shoal_bench is not installed here; in a checkout of Shoal run: make bench", file=sys.stderr)
    return 1

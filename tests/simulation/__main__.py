"""`python -m tests.simulation`: one seed, many, the long one, or the cost of scale; alone, seed 1 and that cost."""

from __future__ import annotations

import argparse
import sys

from tests.simulation import running, scale


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run one, and print what came of it")
    parser.add_argument("--trace", action="store_true", help="print everything that happened")
    parser.add_argument("--seeds", help="run many: 1-200")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--long", action="store_true", help="100 nodes and 1,000 clients")
    parser.add_argument("--scale", action="store_true", help="print the cost of scale")
    given = parser.parse_args()
    if given.seeds:
        first, _, last = given.seeds.partition("-")
        return running.many(range(int(first), int(last or first) + 1), given.jobs)
    if given.long or given.seed is not None:
        return running.one("long" if given.long else given.seed, given.trace)
    failed = 0 if given.scale else running.one(1, given.trace)
    scale.print_table()
    return failed


sys.exit(main())

"""shoal explain: which node a read of a block goes to and why, or why the block is missed; and then a read of it.

What is printed of the nodes is from before the read, which brings a block that was missed. Load and failures are what
this process knows; a program that has run for a while can ask for its own view of it (`shoal.explaining.explain`).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from shoal import explaining
from shoal.cli import connection, output
from shoal.cli.locate import as_values, shown
from shoal_core import units

if TYPE_CHECKING:
    from shoal.explaining import Explanation, Step, Trace
    from shoal.members import Members


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="an object")
    parser.add_argument("--block", metavar="N", type=number, default=0, help="of its blocks, the first is 0 (default)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    connection.add_arguments(parser)


def number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a block")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments) as client:
        info = client.info(arguments.url)
        found = explaining.explain(client, info, arguments.block)
        members = client.members()
    if arguments.json:
        values = as_values(members, found.block) | {
            "state": found.state,
            "why": found.why,
            "age_s": found.age_s,
            "steps": [step._asdict() for step in found.steps],
            "passed_over": [step._asdict() for step in found.passed_over],
            "read": found.trace._asdict(),
        }
        output.json_line(msgspec.to_builtins(values))
    else:
        _print(members, found)
    return 1 if found.trace.error is not None else 0


def _print(members: Members, found: Explanation) -> None:
    block = found.block
    age = "" if found.age_s is None else f", {units.duration(found.age_s)} ago" if found.age_s else ", just now"
    holders = [f"{output.printable(node_id)} {shown(state)}" for node_id, state in block.ranked_holders]
    output.fields(
        [
            ("url", output.printable(block.info.url)),
            ("block", f"{units.number(block.number)}, {units.size(block.size)}"),
            ("version", output.printable(block.info.etag)),
            ("owners", ", ".join(map(output.printable, block.owners)) or "nobody"),
            ("held by", ", ".join(holders) or "nobody"),
            ("state", f"{found.state}{age}"),
            ("because", output.printable(found.why)),
        ]
    )
    print("\nA read asks, in this order:")
    for place, step in enumerate(found.steps, 1):
        print(f"  {place}. {_step(step)}")
    for step in found.passed_over:
        print(f"  -  {_step(step)}")
    print(f"\n{_trace(found.trace)}")
    for node_id, reason in members.silent.items():
        output.note(f"shoal: {node_id} does not answer: {reason}")


def _step(step: Step) -> str:
    if step.node_id is None:
        return f"the origin: {output.printable('; '.join(step.reasons))}"
    return f"{output.printable(step.node_id)}, {step.distance}: {output.printable('; '.join(step.reasons))}"


def _trace(trace: Trace) -> str:
    took = f"{trace.milliseconds:.3g} ms"
    if trace.error is not None:
        return f"The read failed after {took}: {output.printable(trace.error)}"
    if trace.node_id is None:
        return f"The read took {took}: from the origin, without a node"
    origins = {
        "dram": "which had it in memory",
        "disk": "which had it on disk",
        "peer": "which brought it from another node",
        "origin": "which brought it from the origin",
    }
    return f"The read took {took}: from {output.printable(trace.node_id)}, {origins[trace.tier]}"

"""kubectl shoal doctor: the installation, your rights, every object and every node looked at once, with what to do.

Each check is one line: how it is, and when that is not good, one more with the remedy. Nothing is changed. Nodes look
at themselves: `shoal doctor` runs in their pods. Exit code 1 when a check failed; warnings do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kubectl_shoal import output
from kubectl_shoal.doctor.check import Check, Outcome
from kubectl_shoal.kubectl import Kubectl, Refused

_MARKS: dict[Outcome, str] = {"pass": "ok", "warn": "warn", "fail": "FAIL", "skip": "skip"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", nargs="?", help="the nodes of this pool only")
    parser.add_argument("-v", "--verbose", action="store_true", help="what is fine on the nodes as well")
    parser.add_argument("--nodes", action=argparse.BooleanOptionalAction, default=True, help="look at nodes (default)")


def run(arguments: argparse.Namespace) -> int:
    found: list[Check] = []
    for check in _checks(arguments):
        found.append(check)
        if arguments.output == "table" and (arguments.verbose or not (check.node and check.outcome == "pass")):
            output.write(_line(check))
    count = {outcome: sum(check.outcome == outcome for check in found) for outcome in _MARKS}
    if arguments.output == "table":
        untested = f", {count['skip']} not tested" if count["skip"] else ""
        output.write(f"\n{count['pass']} fine, {count['warn']} to look at, {count['fail']} failed{untested}\n")
    else:
        values: list[dict[str, Any]] = [check._asdict() for check in found]
        output.write(output.document(values, arguments.output))
    return 1 if count["fail"] else 0


def _line(check: Check) -> str:
    line = f"{_MARKS[check.outcome]:<4}  {output.printable(check.name):<24}  {output.printable(check.finding)}\n"
    return line + (f"{'':32}-> {output.printable(check.remedy)}\n" if check.remedy else "")


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    from kubectl_shoal.doctor import installation, nodes, rights, standing

    kubectl = Kubectl.of(arguments)
    try:
        yield installation.server(kubectl)
    except Refused as refused:
        yield Check("API server", "fail", str(refused), "choose a cluster: --context, --kubeconfig, KUBECONFIG")
        return
    place = installation.Place(kubectl, arguments)
    crds = list(installation.definitions(kubectl))
    yield from crds
    yield from installation.running(kubectl, place)
    yield from rights.checks(kubectl, place.namespace)
    if any(check.outcome == "fail" for check in crds):
        return  # of kinds that are not there nothing can be said
    yield from standing.checks(kubectl, arguments.pool)
    if arguments.nodes:
        yield from nodes.checks(kubectl, place.pods, arguments.pool)

"""Which node a program on this machine would use, and why that one. The order is that of `shoal.connect`."""

from __future__ import annotations

import os
from typing import NamedTuple

from shoal import embedded
from shoal.cli.doctor.check import Check
from shoal.connect import POD_CONFIG, find_config, in_pod
from shoal_core.errors import ShoalError

NAME = "address"


class Choice(NamedTuple):
    """An address, or None where a program would get an error; and how that is said."""

    address: str | None
    check: Check


def choose(given: str | None) -> Choice:
    if given is not None:
        return Choice(given, Check(NAME, "pass", f"{given}, as --address says"))
    named = os.environ.get("SHOAL_CONFIG")
    why = f"SHOAL_CONFIG={named}" if named else POD_CONFIG
    try:
        config = find_config()
    except ShoalError as error:
        return Choice(None, Check(NAME, "fail", str(error), f"correct the file that {why} names" if named else ""))
    if config is not None:
        return _first_that_answers(config.addresses, why)
    if in_pod():
        return Choice(
            None,
            Check(
                NAME, "fail", f"this pod has no Shoal volume: {POD_CONFIG} is missing",
                "add to the pod: volumes: [{name: shoal, csi: {driver: csi.shoal.dev, readOnly: true}}], and to the "
                "container: volumeMounts: [{name: shoal, mountPath: /run/shoal, readOnly: true}]",
            ),
        )  # fmt: skip
    address = embedded.address()
    return Choice(address, Check(NAME, "pass", f"{address}: your embedded node (no SHOAL_CONFIG, no volume)"))


def _first_that_answers(addresses: tuple[str, ...], why: str) -> Choice:
    from shoal.cli.doctor import node

    silent: list[str] = []
    for address in addresses:
        try:
            node.reach(address)
        except ShoalError:
            silent.append(address)
            continue
        before = f", after {', '.join(silent)}, which did not answer" if silent else ""
        outcome = "warn" if silent else "pass"
        remedy = "start the nearer node, or take it out of the list" if silent else ""
        return Choice(address, Check(NAME, outcome, f"{address}, from {why}{before}", remedy))
    return Choice(addresses[-1], Check(NAME, "pass", f"{addresses[-1]}, from {why}"))

"""shoal stop: ends the user's embedded node. Never a node that somebody else keeps, in a pod or as a service.

The node names its pid; it is signalled only when the kernel agrees that this is the user's own process and a Shoal
node, and through a descriptor of that very process, so that a pid that was used again meanwhile is not hit.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from pathlib import Path

from shoal.cli import connection
from shoal_core.errors import BadRequest, NodeGone

TIMEOUT_S = 30.0
"""The node lets its write-behind finish, for about 10 s at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        with connection.open_client(arguments, start=False) as client:
            values = client.node_stats()
    except NodeGone:
        print("no node is running")
        return 0
    name, pid = values["node"], values["pid"]
    if not values["embedded"]:
        raise BadRequest(f"node {name} is not an embedded one; whoever started it stops it")
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise BadRequest(f"node {name} has pid {pid} on another machine or in another container") from None
    try:
        if not _is_own_node(pid):
            raise BadRequest(f"node {name} says that its pid is {pid}, which here is not a Shoal node of yours")
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], TIMEOUT_S)[0]:
            print(f"shoal: node {name}, pid {pid}, was asked to end but still runs after {TIMEOUT_S:.0f} s",
                  file=sys.stderr)  # fmt: skip
            return 1
    finally:
        os.close(process)
    print(f"node {name}, pid {pid}, has ended")
    return 0


def _is_own_node(pid: int) -> bool:
    process = Path("/proc", str(pid))
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        return process.stat().st_uid == os.getuid() and b"shoal_node" in words
    except OSError:
        return False

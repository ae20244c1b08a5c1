"""How commands reach the node: the same way as a program that says `shoal.connect()`, plus `--address`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from shoal import embedded
from shoal.connect import find_config
from shoal_core.errors import NodeGone, ShoalError
from shoal_transport.links import open_channel

if TYPE_CHECKING:
    from shoal.client import Client

ANSWER_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="unix:/path or tcp:host:port of the node; otherwise SHOAL_CONFIG, /run/shoal/client.json or your embedded"
        " node decides",
    )


def open_client(arguments: argparse.Namespace, *, start: bool = True) -> Client:
    """A client. Without `start`, no embedded node is started: NodeGone says that none answers."""
    import shoal

    if start or arguments.address is not None:
        return shoal.connect(arguments.address)
    if find_config() is not None:
        return shoal.connect()
    address = embedded.address()
    try:
        open_channel(address, time.monotonic() + ANSWER_S).close()
    except ShoalError:
        raise NodeGone(f"no node answers at {address}; the first program that reads starts one") from None
    return shoal.connect(address)

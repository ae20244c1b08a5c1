"""Is there a node, does each of its doors work, and how far away is it.

The tests speak the wire protocol directly, a channel at a time, because the client hides what is asked here: it would
fall back from one door to the next, and to the origin.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import statistics
import time
from collections.abc import Generator, Iterator
from typing import Any

from shoal.cli.doctor.check import Check
from shoal.connect import find_config
from shoal.token_source import TokenSource
from shoal_core import environment, units, verbs
from shoal_core.errors import Forbidden, ShoalError
from shoal_core.verbs import hello, map, release, stat
from shoal_transport.interface import Channel
from shoal_transport.links import greet, open_channel

DEADLINE_S = 5.0
ROUND_TRIPS = 200
SLOW_ROUND_TRIP_S = {"unix": 1e-3, "tcp": 5e-3}
LOCAL_ONLY = ("127.", "localhost", "[::1]")


class Node:
    """What one node said when it was reached."""

    def __init__(self, address: str, said: hello.Reply, values: dict[str, Any]) -> None:
        self.address = address
        self.said = said
        self.values = values

    @property
    def is_local(self) -> bool:
        return self.address.startswith("unix:")


def reach(address: str) -> Node:
    """Hello and stat; a ShoalError says why not."""
    with _channel(address) as (channel, said):
        return Node(address, said, call(channel, stat.KIND, stat.Request()).values)


@contextlib.contextmanager
def _channel(address: str) -> Generator[tuple[Channel, hello.Reply]]:
    channel = open_channel(address, time.monotonic() + DEADLINE_S)
    try:
        name, deadline = f"shoal doctor ({os.getpid()})", time.monotonic() + DEADLINE_S
        yield channel, greet(channel, os.urandom(16), hello.REQUESTS, name, deadline, _token_file())
    finally:
        channel.close()


def _token_file() -> TokenSource:
    """What a program that says `shoal.connect()` here would show."""
    config = find_config()
    return TokenSource(config.token_file if config is not None else None)


def call(channel: Channel, kind: int, request: Any, deadline_s: float = DEADLINE_S, descriptors: int = 0) -> Any:
    """One verb without payload."""
    header, body = channel.call(kind, verbs.encode(request), time.monotonic() + deadline_s, descriptors)
    return verbs.decode_reply(kind, header, body)


def checks(node: Node) -> Iterator[Check]:
    values = node.values
    kind = "embedded" if values["embedded"] else "standing"
    yield Check(
        "node", "warn" if values.get("draining") else "pass",
        f"{values['node']}, {kind}, pid {values['pid']}, up {units.duration(values['uptime_s'])}"
        + (", draining: it takes no reads" if values.get("draining") else ""),
    )  # fmt: skip
    yield _environment(node)
    yield from _door(node.address)
    yield from _tcp(node)
    yield from _counters(values)


def _environment(node: Node) -> Check:
    if node.said.origin_environment == environment.digest(os.environ):
        return Check("credentials", "pass", "the node was started with the same AWS_, GOOGLE_, AZURE_ variables")
    if not node.values["embedded"]:
        return Check("credentials", "pass", "the node has its own AWS_, GOOGLE_, AZURE_ variables, not yours")
    return Check(
        "credentials", "warn", "the node was started with other AWS_, GOOGLE_ or AZURE_ variables than are set here",
        "shoal stop; the next program that needs it starts it with the present ones",
    )  # fmt: skip


def _door(address: str) -> Iterator[Check]:
    door = address.partition(":")[0]
    try:
        with _channel(address) as (channel, said):
            if door == "unix":
                yield _shared_memory(channel, said)
            yield _round_trip(door, channel)
    except ShoalError as error:
        yield Check(f"{door} door", "fail", str(error), "see the node's log")


def _shared_memory(channel: Channel, said: hello.Reply) -> Check:
    """A segment's descriptor, passed, mapped read-only, and refusing to be written or cut."""
    name = "shared memory"
    if not said.grants:
        finding = "not with this reader: bytes come through the socket (access.share_memory_with names namespaces)"
        return Check(name, "pass", finding)
    size = call(channel, map.KIND, map.Request(0), descriptors=1).size
    descriptors = channel.take_descriptors()
    try:
        if len(descriptors) != 1 or os.fstat(descriptors[0]).st_size != size:
            return Check(name, "fail", f"{len(descriptors)} descriptors came for one segment",
                         "a proxy between here and the socket? mount the node's own socket directory")  # fmt: skip
        with mmap.mmap(descriptors[0], size, prot=mmap.PROT_READ) as mapped:
            readable = len(mapped[: mmap.PAGESIZE]) == mmap.PAGESIZE
        try:
            mmap.mmap(descriptors[0], mmap.PAGESIZE).close()
            sealed = False
        except PermissionError:
            sealed = True
    except OSError as error:
        return Check(name, "fail", f"a segment cannot be mapped: {error.strerror}", "check limits (ulimit -v)")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if not readable or not sealed:
        return Check(name, "fail", "a passed segment is not sealed against writing", "Linux 5.1 or newer for the node")
    return Check(name, "pass", f"a segment of {units.size(size)} was passed, mapped and found sealed")


def _round_trip(door: str, channel: Channel) -> Check:
    nothing = release.Request([], [])
    times: list[float] = []
    for _ in range(ROUND_TRIPS):
        started = time.perf_counter()
        call(channel, release.KIND, nothing)
        times.append(time.perf_counter() - started)
    median, worst = statistics.median(times), max(times)
    finding = f"{door}: {units.duration(median)} median of {ROUND_TRIPS}, worst {units.duration(worst)}"
    if median > SLOW_ROUND_TRIP_S.get(door, 1e-3):
        return Check("round trip", "warn", finding, "the node or this machine is overloaded, or the node is far away")
    return Check("round trip", "pass", finding)


def _tcp(node: Node) -> Iterator[Check]:
    """The TCP door beside the one in use."""
    found = [address for address in node.values["addresses"] if address.startswith("tcp:")]
    if node.address.startswith("tcp:"):
        return
    if not found:
        yield Check("TCP door", "pass", "not configured: the node serves this machine only")
        return
    for address in found:
        host = address.removeprefix("tcp:")
        try:
            with _channel(address) as (channel, _):
                yield _round_trip("tcp", channel)
        except Forbidden as error:
            if _token_file().path is None:
                yield Check("TCP door", "pass", f"{address} answers only to tokens of its pool")
            else:
                remedy = "this pod's token is renewed by the CSI driver of its node: is that running?"
                yield Check("TCP door", "fail", f"{address}: {error}", remedy)
            continue
        except ShoalError as error:
            yield Check("TCP door", "fail", f"{address}: {error}", "a firewall? the address of another network?")
            continue
        if _token_file().path is not None:
            yield Check("TCP door", "pass", f"{address} answers to this pod's token")
        elif not host.startswith(LOCAL_ONLY):
            yield Check("TCP door", "pass", f"{address} answers; it asks for no password")


def _counters(values: dict[str, Any]) -> Iterator[Check]:
    """What the node itself counted as trouble."""
    corrupt = sum(values["corrupt_pages"].values())
    if corrupt:
        yield Check("integrity", "warn", f"{corrupt} pages did not match their digests; they were read again",
                    "test this machine's memory and disk")  # fmt: skip
    errors = {op: count for op, count in values["disk_errors"].items() if count}
    if errors:
        shown = ", ".join(f"{op} {count}" for op, count in errors.items())
        yield Check("disk errors", "warn", shown, "check the disk (dmesg, smartctl)")
    fallbacks = {kind: count for kind, count in values["fallbacks"].items() if count}
    if fallbacks:
        shown = ", ".join(f"{kind.replace('_', ' ')} {units.number(count)}" for kind, count in fallbacks.items())
        yield Check("fallbacks", "warn", f"{shown} since the node started", "shoal top shows whether they go on")

"""Hosts for benchmarks between machines: network namespaces of this one, joined by a cable (veth) or a switch (bridge).

`with pair() as (a, b)` joins two directly: nothing but the kernel's two network stacks is between them. `with
network(names)` joins many by a bridge, and each host's cable can be given a rate, so that what a node gives is bounded
by its network and not by the cores that all of them share here. `with host.inside()` runs something there: processes,
threads and sockets made meanwhile belong to that host. Namespaces have no names and are held by descriptors of this
process, so they vanish with it. Needs root; `Unavailable` says what is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from shoal_bench.namespace import Namespace, Unavailable

_QUEUE_S = 0.05
"""Of a rate: what waits longer is dropped, as at a switch's port."""
_BURST_BYTES_MIN = 64 << 10


class Host(Namespace):
    """One namespace. `address` is on the network it was joined to."""

    address = ""

    def limit(self, bytes_per_s: float) -> None:
        """What it sends goes at this rate at most."""
        burst = max(_BURST_BYTES_MIN, int(bytes_per_s * _QUEUE_S))
        self.tc(f"qdisc replace dev eth0 root tbf rate {int(bytes_per_s)}bps burst {burst} limit {2 * burst}")


@contextlib.contextmanager
def pair() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them."""
    with _hosts(2) as (one, other):
        with _available():
            one.ip(f"link add eth0 type veth peer name eth0 netns {other.path}")
            _address([one, other])
        yield one, other


@contextlib.contextmanager
def network(names: Sequence[str]) -> Iterator[dict[str, Host]]:
    """Hosts by name, joined by a switch."""
    with _hosts(len(names) + 1) as (switch, *hosts):
        with _available():
            switch.ip("link add switch type bridge", "link set switch up")
            for number, host in enumerate(hosts):
                switch.ip(
                    f"link add port{number} type veth peer name eth0 netns {host.path}",
                    f"link set port{number} master switch up",
                )  # fmt: skip
            _address(hosts)
        yield dict(zip(names, hosts, strict=True))


@contextlib.contextmanager
def _hosts(count: int) -> Iterator[list[Host]]:
    made: list[Host] = []
    try:
        with _available():
            made.extend(Host() for _ in range(count))  # those made before one fails are closed too
        yield made
    finally:
        for host in made:
            host.close()


@contextlib.contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"network namespaces need root, CAP_SYS_ADMIN, ip and tc: {error}") from error


def _address(hosts: Sequence[Host]) -> None:
    for number, host in enumerate(hosts, 1):
        host.address = f"10.138.0.{number}"
        host.ip(f"addr add {host.address}/24 dev eth0", "link set eth0 up")

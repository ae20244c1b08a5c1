"""A little network of its own for tests: hosts that are network namespaces, joined by bridges that are a namespace too.

`with network() as net` makes it, `net.add("a", zone="west")` adds a host with an address in 10.137.0.0/16, and
`net.popen("a", argv)` or `with net.inside("a")` runs something there: sockets made inside belong to that host, whoever
uses them later, so a server in a thread of the test process can stand on any host. Nothing of the machine's own network
is touched, and the namespaces have no names: they are held by descriptors of this process and vanish with them, however
the process ends. Two networks at once do not see each other.

    host a: eth0 ──── port │ zone west ├ out ──── in ┤ core │ port ──── eth0: host c, of no zone

What goes wrong is a queue at the sending end of a cable: tbf for a rate, a fifo of length 0 for a cut, which drops in
silence. Who is where on the wire is written down in each host, so a cut host is never "unreachable", it is only not
heard of again; and one direction between two hosts is cut by writing down an address that nobody has. Delay is not
here (netem is not in every kernel): see fault_proxy. Needs root and CAP_SYS_ADMIN; `Unavailable` says so.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest

from shoal_bench.namespace import Namespace, Unavailable, enter

__all__ = ["Namespace", "Unavailable", "enter"]

_END_S = 10.0
QUEUE_S = 0.05
"""What waits longer at a cable with a rate is dropped."""
BURST_BYTES_MIN = 32 << 10
NOBODY = "02:00:00:00:00:00"

Direction = Literal["both", "sends", "receives"]


class _Cable:
    """One direction of a cable: the queue at its sending end."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        self._namespace = namespace
        self._device = device
        self._shaped = False
        self.bytes_per_s: float | None = None
        self.cut = False

    def apply(self) -> None:
        """Make it so."""
        queue = f"qdisc replace dev {self._device} root"
        if self.cut:
            self._namespace.tc(f"{queue} pfifo limit 0")
        elif self.bytes_per_s is not None:
            burst = max(BURST_BYTES_MIN, int(self.bytes_per_s * QUEUE_S))
            limit = burst + int(self.bytes_per_s * QUEUE_S)
            self._namespace.tc(f"{queue} tbf rate {int(self.bytes_per_s)}bps burst {burst} limit {limit}")
        elif self._shaped:
            self._namespace.tc(f"qdisc del dev {self._device} root")
        self._shaped = self.cut or self.bytes_per_s is not None


class _Host:
    def __init__(self, namespace: Namespace, switch: Namespace, port: str, zone: int, number: int) -> None:
        self.namespace = namespace
        self.address = f"10.137.{zone}.{number}"
        self.hardware = f"02:00:0a:89:{zone:02x}:{number:02x}"
        self.sends = _Cable(namespace, "eth0")
        self.receives = _Cable(switch, port)
        self.unheard_by: set[str] = set()
        """Hosts that what this one sends does not reach."""

    def cables(self, direction: Direction) -> list[_Cable]:
        return [
            cable
            for name, cable in (("sends", self.sends), ("receives", self.receives))
            if direction in ("both", name)
        ]  # fmt: skip


class Network:
    """Made by `network()`. Hosts and zones are named by the test."""

    def __init__(self) -> None:
        self._switch = Namespace()
        try:
            self._switch.ip("link add core type bridge", "link set core up")
            for queue in "pfifo limit 0", "tbf rate 1mbps burst 32kb limit 64kb":  # a kernel may be without them
                self._switch.tc(f"qdisc replace dev core root {queue}", "qdisc del dev core root")
        except OSError:
            self._switch.close()
            raise
        self._hosts: dict[str, _Host] = {}
        self._zones: dict[str, tuple[int, _Cable, _Cable]] = {}
        self._processes: list[subprocess.Popen[Any]] = []

    def add(self, host: str, zone: str = "") -> str:
        """A new host in a zone, or, without one, at the core; its address."""
        assert host not in self._hosts and len(self._hosts) < 250
        bridge, zone_number = ("core", 0) if not zone else self._bridge(zone)
        namespace = Namespace()
        number = len(self._hosts) + 1
        port = f"port{number}"
        new = self._hosts[host] = _Host(namespace, self._switch, port, zone_number, number)
        self._switch.ip(
            f"link add {port} type veth peer name eth0 address {new.hardware} netns {namespace.path}",
            f"link set {port} master {bridge} up",
        )
        namespace.ip(f"addr add {new.address}/16 dev eth0", "link set eth0 up")
        for name, known in self._hosts.items():
            if name != host:
                _introduce(known, new.address, new.hardware)
                _introduce(new, known.address, known.hardware)
        return new.address

    def address(self, host: str) -> str:
        return self._hosts[host].address

    def namespace(self, host: str) -> Namespace:
        return self._hosts[host].namespace

    def inside(self, host: str) -> contextlib.AbstractContextManager[None]:
        """The calling thread, and the processes and threads it starts meanwhile, are on that host."""
        return self._hosts[host].namespace.inside()

    def popen(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A process on that host, under its own pid; one that still runs when the network ends is killed."""
        with self.inside(host):
            process: subprocess.Popen[Any] = subprocess.Popen(argv, **options)
        self._processes.append(process)
        return process

    # What goes wrong

    def slow(self, host: str, bytes_per_s: float, direction: Direction = "both") -> None:
        """What the host sends, receives or both goes at this rate at most."""
        for cable in self._hosts[host].cables(direction):
            cable.bytes_per_s = bytes_per_s
            cable.apply()

    def cut(self, host: str, direction: Direction = "both") -> None:
        """What the host sends, or what is sent to it, is lost without a word, until `heal`."""
        for cable in self._hosts[host].cables(direction):
            cable.cut = True
            cable.apply()

    def part(self, source: str, target: str) -> None:
        """What `source` sends to `target` is lost; everything else goes on."""
        self._hosts[source].unheard_by.add(target)
        _introduce(self._hosts[source], self._hosts[target].address, NOBODY)

    def heal(self, host: str) -> None:
        """Whatever was done to the host, and between it and others, is over."""
        for cable in self._hosts[host].cables("both"):
            cable.cut, cable.bytes_per_s = False, None
            cable.apply()
        for name, other in self._hosts.items():
            for source, target, target_name in ((other, self._hosts[host], host), (self._hosts[host], other, name)):
                if target_name in source.unheard_by:
                    source.unheard_by.remove(target_name)
                    _introduce(source, target.address, target.hardware)

    def limit_zone(self, zone: str, bytes_per_s: float | None) -> None:
        """The rate between a zone and everything outside it, each way; None: no limit."""
        self._bridge(zone)
        for cable in self._zones[zone][1:]:
            cable.bytes_per_s = bytes_per_s
            cable.apply()

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(_END_S)
        for host in self._hosts.values():
            host.namespace.close()
        self._switch.close()

    def _bridge(self, zone: str) -> tuple[str, int]:
        """The zone's bridge, made when first named, and its number."""
        if zone not in self._zones:
            number = len(self._zones) + 1
            self._switch.ip(
                f"link add zone{number} type bridge",
                f"link set zone{number} up",
                f"link add out{number} type veth peer name in{number}",
                f"link set out{number} master zone{number} up",
                f"link set in{number} master core up",
            )
            self._zones[zone] = number, _Cable(self._switch, f"out{number}"), _Cable(self._switch, f"in{number}")
        return f"zone{self._zones[zone][0]}", self._zones[zone][0]


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network for the length of a block; Unavailable where this machine has none to lend."""
    try:
        made = Network()
    except OSError as error:
        raise Unavailable(f"a network of namespaces needs root, CAP_SYS_ADMIN, ip and tc: {error}") from error
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def private_network() -> Iterator[Network]:
    """A network for one test; skipped where there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(network())
        except Unavailable as error:
            pytest.skip(str(error))
        yield made


def _introduce(host: _Host, address: str, hardware: str) -> None:
    """Where the host sends what is for this address, without asking."""
    host.namespace.ip(f"neigh replace {address} lladdr {hardware} nud permanent dev eth0")

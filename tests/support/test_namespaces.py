"""Hosts reach each other, and what is cut, slowed or parted is so in that direction and no other."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support import namespaces, waiting
from tests.support.namespaces import Network, private_network

__all__ = ["private_network"]

PORT = 7000
MIB = 1 << 20


class Sink:
    """A server on a host that reads everything it is sent, and sends what the test says."""

    def __init__(self, net: Network, host: str) -> None:
        with net.inside(host):
            self._socket = socket.create_server((net.address(host), PORT))
        self.received = 0
        self.connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)
        self._socket.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def send(self, data: bytes) -> None:
        """To whoever connected last."""
        self.connections[-1].sendall(data)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections.append(connection)
                self._threads.append(threading.Thread(target=self._read, args=(connection,)))
                self._threads[-1].start()

    def _read(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                self.received += len(data)


@pytest.fixture
def net(private_network: Network) -> Network:
    for host, zone in (("a", "west"), ("b", "west"), ("c", "east")):
        private_network.add(host, zone)
    return private_network


@pytest.fixture
def sink(net: Network) -> Iterator[Sink]:
    """On host b."""
    made = Sink(net, "b")
    yield made
    made.close()


def connect(net: Network, source: str, target: str, seconds: float = 5.0) -> socket.socket:
    with net.inside(source):
        return socket.create_connection((net.address(target), PORT), seconds)


def test_hosts_reach_each_other_over_zones(net: Network, sink: Sink) -> None:
    for host in ("a", "c"):
        with connect(net, host, "b") as connection:
            assert connection.getsockname()[0] == net.address(host)
    waiting.until(lambda: len(sink.connections) == 2)


def test_a_process_runs_on_its_host_under_its_own_pid(net: Network) -> None:
    program = (
        f"import os, socket; s = socket.create_server(({net.address('c')!r}, {PORT})); "
        "print(os.getpid(), flush=True); s.accept()[0].sendall(b'hello')"
    )
    process = net.popen("c", [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    with connect(net, "a", "c") as connection:
        assert connection.recv(10) == b"hello"
    assert process.wait(10) == 0
    process.stdout.close()


def test_a_cut_is_silent_and_heals(net: Network, sink: Sink) -> None:
    connection = connect(net, "a", "b")
    net.cut("b")
    with pytest.raises(TimeoutError):
        connect(net, "a", "b", 0.3)
    connection.sendall(b"x" * 10)
    net.heal("b")
    waiting.until(lambda: sink.received == 10, "TCP sends it again")
    connection.close()
    connect(net, "c", "b").close()


@pytest.mark.parametrize("direction", ["sends", "receives"])
def test_a_cut_in_one_direction(net: Network, sink: Sink, direction: namespaces.Direction) -> None:
    """Bytes to b arrive although it hears of no acknowledgement, or the other way round."""
    connection = connect(net, "a", "b")
    connection.sendall(b"x")
    waiting.until(lambda: sink.received == 1, "the connection stands")
    net.cut("b", direction)
    connection.settimeout(0.3)
    connection.sendall(b"y" * 9)
    sink.send(b"z" * 9)
    if direction == "sends":
        waiting.until(lambda: sink.received == 10, "what is sent to it arrives")
        with pytest.raises(TimeoutError):
            connection.recv(9)
    else:
        assert connection.recv(9) == b"z" * 9
        assert sink.received == 1
    net.heal("b")
    waiting.until(lambda: sink.received == 10)
    connection.close()


def test_two_hosts_are_parted_one_way_and_others_are_not(net: Network, sink: Sink) -> None:
    net.part("a", "b")
    with pytest.raises(TimeoutError):
        connect(net, "a", "b", 0.3)
    connect(net, "c", "b").close()
    net.heal("b")
    connect(net, "a", "b").close()


def seconds_for(net: Network, source: str, sink: Sink, size: int) -> float:
    """How long so many bytes take to b."""
    begun, before = time.monotonic(), sink.received
    with connect(net, source, "b", 20.0) as connection:
        connection.sendall(bytes(size))
        waiting.until(lambda: sink.received >= before + size)
    return time.monotonic() - begun


def test_a_slow_host_is_slow_and_then_not(net: Network, sink: Sink) -> None:
    net.slow("b", MIB)
    assert seconds_for(net, "a", sink, MIB) > 0.7
    net.heal("b")
    assert seconds_for(net, "a", sink, MIB) < 0.7


def test_a_zone_has_a_rate_to_others_and_none_within(net: Network, sink: Sink) -> None:
    net.limit_zone("west", MIB)
    assert seconds_for(net, "c", sink, MIB) > 0.7
    assert seconds_for(net, "a", sink, MIB) < 0.7
    net.limit_zone("west", None)
    assert seconds_for(net, "c", sink, MIB) < 0.7


def namespaces_held() -> set[int]:
    """Network namespaces that this process has a descriptor of."""
    held: set[int] = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("net:"):
                held.add(os.stat(f"/proc/self/fd/{descriptor}").st_ino)
    return held


def test_nothing_is_touched_and_nothing_is_left_after_a_failure() -> None:
    own, devices = os.readlink("/proc/thread-self/ns/net"), socket.if_nameindex()
    processes: list[subprocess.Popen[bytes]] = []

    def two_networks() -> None:
        with namespaces.network() as one, namespaces.network() as other:
            for net in (one, other):
                assert net.add("a", "west") == "10.137.1.1"
                processes.append(net.popen("a", ["sleep", "1000"]))
            assert len(namespaces_held()) == 4
            assert socket.if_nameindex() == devices
            with one.inside("a"):
                raise KeyError

    try:
        with pytest.raises(KeyError):
            two_networks()
    except namespaces.Unavailable as error:
        pytest.skip(str(error))
    assert [process.returncode for process in processes] == [-signal.SIGKILL, -signal.SIGKILL]
    assert namespaces_held() == set()
    assert os.readlink("/proc/thread-self/ns/net") == own and socket.if_nameindex() == devices

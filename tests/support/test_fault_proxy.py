"""The proxy passes everything on by default; each fault is what it says, in its direction, on open connections too."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support import waiting
from tests.support.fault_proxy import STOPPED, FaultProxy, Faults, Way, fault_proxy

MIB = 1 << 20


class Echo:
    """Sends back what it gets, until the other side has ended."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.received = 0
        self.ended = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._threads.append(threading.Thread(target=self._echo, args=(connection,)))
                self._threads[-1].start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                self.received += len(data)
                connection.sendall(data)
        self.ended += 1


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with fault_proxy(echo.address) as made:
        yield made


@pytest.fixture
def connection(proxy: FaultProxy) -> Iterator[socket.socket]:
    """Open, and known to work."""
    with socket.create_connection(proxy.address, 10) as made:
        assert exchanged(made, b"hello") == b"hello"
        yield made


def read_to_the_end(connection: socket.socket, into: bytearray) -> None:
    while data := connection.recv(100):
        into += data


def exchanged(connection: socket.socket, data: bytes, count: int | None = None) -> bytes:
    """What comes back of it."""
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    received = b""
    while len(received) < (len(data) if count is None else count) and (more := connection.recv(1 << 16)):
        received += more
    sender.join(10)
    return received


def test_everything_passes_and_so_does_an_end(connection: socket.socket, proxy: FaultProxy, echo: Echo) -> None:
    data = bytes(range(256)) * 8192
    assert exchanged(connection, data) == data
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
    waiting.until(lambda: echo.ended == 1)
    assert (proxy.connections, proxy.passed_bytes, proxy.flipped_bits) == (1, 2 * (len(data) + 5), 0)


def test_a_reset_of_the_target_is_a_reset(echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        unused = nobody.getsockname()
    # It may come before the connecting call has returned.
    with (
        fault_proxy(unused) as proxy,
        pytest.raises(ConnectionResetError),
        socket.create_connection(proxy.address, 10) as connection,
    ):
        connection.recv(1)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_delay(connection: socket.socket, proxy: FaultProxy, direction: str) -> None:
    proxy.set(Faults(**{direction: Way(delay_s=0.2, jitter_s=0.1)}))
    for _ in range(2):
        begun = time.monotonic()
        assert exchanged(connection, b"abc") == b"abc"
        assert time.monotonic() - begun >= 0.2
    proxy.heal()
    assert exchanged(connection, b"abc") == b"abc"


def test_a_rate(connection: socket.socket, proxy: FaultProxy) -> None:
    proxy.set(Faults(down=Way(bytes_per_s=MIB)))
    begun, data = time.monotonic(), bytes(MIB // 2)
    assert exchanged(connection, data) == data
    assert time.monotonic() - begun >= 0.45


def test_a_cut_after_so_many_bytes(proxy: FaultProxy) -> None:
    proxy.set(Faults(down=Way(cut_after_bytes=1000)))
    for _ in range(2):
        with socket.create_connection(proxy.address, 10) as connection:
            connection.sendall(bytes(5000))
            received = bytearray()
            with pytest.raises(ConnectionResetError):
                read_to_the_end(connection, received)
            assert len(received) <= 1000  # a reset overtakes what was not read yet


def test_one_bit_is_flipped_in_each_so_many_bytes(proxy: FaultProxy) -> None:
    proxy.set(Faults(up=Way(flip_every_bytes=1000)))
    data = bytes(100_500)
    with socket.create_connection(proxy.address, 10) as connection:
        received = exchanged(connection, data)
    wrong = {place: byte for place, byte in enumerate(received) if byte}
    assert sorted(wrong) == list(range(999, 100_500, 1000))
    assert all(byte.bit_count() == 1 for byte in wrong.values()) and proxy.flipped_bits == 100


def test_a_black_hole_keeps_everything_and_gives_it_back(
    connection: socket.socket, proxy: FaultProxy, echo: Echo
) -> None:
    proxy.set(STOPPED)
    connection.settimeout(0.2)
    connection.sendall(b"late")
    with pytest.raises(TimeoutError):
        connection.recv(1)
    assert echo.received == 5
    with socket.create_connection(proxy.address, 0.2) as another:
        another.sendall(b"x")
        with pytest.raises(TimeoutError):
            another.recv(1)
    connection.settimeout(10)
    proxy.heal()
    assert connection.recv(10) == b"late"


def test_one_direction_is_stopped(connection: socket.socket, proxy: FaultProxy, echo: Echo) -> None:
    proxy.set(Faults(down=Way(stopped=True)))
    connection.settimeout(0.2)
    connection.sendall(b"x")
    waiting.until(lambda: echo.received == 6, "it arrives")
    with pytest.raises(TimeoutError):
        connection.recv(1)


def test_a_silent_door(proxy: FaultProxy, connection: socket.socket, echo: Echo) -> None:
    """Half open: who connects is accepted and hears nothing; who was connected goes on."""
    proxy.set(Faults(door="silent"))
    with socket.create_connection(proxy.address, 0.2) as another:
        another.sendall(b"x")
        with pytest.raises(TimeoutError):
            another.recv(1)
        assert exchanged(connection, b"abc") == b"abc"
        proxy.heal()
        another.settimeout(10)
        assert another.recv(1) == b"x"


def test_a_closed_door_opens_again_at_the_same_address(proxy: FaultProxy, connection: socket.socket) -> None:
    address = proxy.address
    proxy.set(Faults(door="refused"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 10)
    assert exchanged(connection, b"abc") == b"abc"
    proxy.heal()
    with socket.create_connection(address, 10) as another:
        assert exchanged(another, b"abc") == b"abc"


def test_a_reset_of_all(proxy: FaultProxy, connection: socket.socket, echo: Echo) -> None:
    proxy.reset_connections()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    waiting.until(lambda: echo.ended == 1, "the target hears of it")

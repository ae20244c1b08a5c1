"""Where the socket doors listen and connect: what is wrong with an address is said, and nobody's socket is taken."""

import errno
import os
import resource
from typing import Any

import pytest

from shoal_core.errors import ConfigError, NodeGone
from shoal_transport import tcp, unix
from tests.contract import doors
from tests.contract.doors import soon


def test_nobody_there_is_a_node_that_is_gone(tmp_path: Any) -> None:
    with pytest.raises(NodeGone, match="No such file"):
        unix.connect(f"{tmp_path}/nothing", soon())
    with pytest.raises(NodeGone, match="refused"):
        tcp.connect("127.0.0.1:1", soon())


def test_without_a_descriptor_left_the_node_is_gone(tmp_path: Any) -> None:
    """As for any other reason: whoever asks has a way out for that, and for no other error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    with doors.open_door("tcp") as door, doors.open_door("unix") as other:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            for connect, opened in ((tcp.connect, door), (unix.connect, other)):
                with pytest.raises(NodeGone, match="Too many open files"):
                    connect(opened.listener.address.partition(":")[2], soon())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("address", ["host", "host:", ":x", "host:70000", "host:-1", ""])
def test_a_tcp_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        tcp.split(address)


def test_a_tcp_address_is_split_at_its_last_colon() -> None:
    assert tcp.split("[::1]:80") == ("::1", 80)
    assert tcp.split(":80") == ("127.0.0.1", 80)


def test_a_port_that_is_taken_is_a_configuration_error() -> None:
    with doors.open_door("tcp") as door, pytest.raises(ConfigError, match=os.strerror(errno.EADDRINUSE)):
        tcp.TcpListener(door.listener.address.removeprefix("tcp:"))


def test_a_live_socket_is_left_alone_and_a_dead_one_replaced() -> None:
    with doors.open_door("unix") as door:
        path = door.listener.address.removeprefix("unix:")
        with pytest.raises(ConfigError, match="already listens"):
            unix.UnixListener(path)
        probe = door.listener.accept()
        assert probe is not None and probe.receive() is None
        probe.close()
        door.pair()
        door.listener._socket.close()  # as a kill -9 leaves it: the file stays
        assert os.path.exists(path)
        replaced = unix.UnixListener(path)
        channel = unix.connect(path, soon())
        connection = replaced.accept()
        assert connection is not None
        for end in (channel, connection, replaced):
            end.close()
        assert not os.path.exists(path)


def test_a_unix_socket_is_for_its_user_only() -> None:
    with doors.open_door("unix") as door:
        assert os.stat(door.listener.address.removeprefix("unix:")).st_mode & 0o777 == 0o600


def test_a_unix_path_that_is_too_long_is_named(tmp_path: Any) -> None:
    path = f"{tmp_path}/{'x' * 120}"
    with pytest.raises(ConfigError, match="107 bytes"):
        unix.UnixListener(path)


def test_a_directory_that_cannot_be_made_is_named() -> None:
    with doors.open_door("unix") as door:
        socket = door.listener.address.removeprefix("unix:")
        with pytest.raises(ConfigError, match="Not a directory"):
            unix.UnixListener(f"{socket}/inner/sock")

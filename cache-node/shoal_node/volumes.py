"""Volumes: each has a socket of its own in its directory, and whoever reaches that socket is who the volume is for.

Who publishes volumes (the CSI driver) makes a directory for each below `access.volumes_directory`: `mount/`, which the
pod sees, and beside it, written last and whole, `access.json`, which says whose it is. Nothing is told to the node: it
looks, every POLL_S. A volume that is new gets a listener at `mount/node.sock`; one whose access.json changed or went,
or whose directory did, loses its listener and its connections. So what was withdrawn ends within a second, and after a
restart of the node every volume has its socket again. A file that makes no sense is skipped, and said once.

One thread looks, and accepts for all volumes. The socket is made under another name and put in place by a rename: a pod
that sees it can connect. It is bound relative to its directory's descriptor, as a socket's address ends after 107 bytes
and a volume's path may be longer. Everybody may connect (mode 0666): the directory decides who sees it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import stat
import threading
import time

from shoal_core import access, limits
from shoal_core.errors import BadRequest
from shoal_node.scope import Scope
from shoal_node.serve import Server
from shoal_transport import unix
from shoal_transport.stream_socket import SocketConnection

log = logging.getLogger("shoal.node")

POLL_S = 0.5
ACCESS, MOUNT, SOCKET = "access.json", "mount", "node.sock"
_NEW = ".node.sock.new"
_BACKLOG = 512
_PAUSE_S = 0.05
"""When nothing can be accepted, as there is no descriptor left: one more moment, not a spin."""

Seen = tuple[int, int, int]
"""What tells one access.json from the next."""


class _Volume:
    """One that is listened at."""

    def __init__(self, seen: Seen, scope: Scope, listening: socket.socket, inode: int) -> None:
        self.seen = seen
        self.scope = scope
        self.listening = listening
        self.inode = inode
        """Of the socket's file: another one there is not ours."""


class Volumes:
    """All volumes of one directory."""

    def __init__(self, directory: str, server: Server) -> None:
        self._directory = directory
        self._server = server
        self._volumes: dict[str, _Volume] = {}
        self._bad: dict[str, Seen] = {}
        """Files that make no sense: not read again before they change."""
        self._said: dict[str, str] = {}
        """What was logged of each name, so that it is said once."""
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="shoal-volumes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody is let in any more, and the sockets go. Connections end with the server."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for name in list(self._volumes):
            self._end(name)
        self._selector.close()
        os.close(self._wake)

    # The thread

    def _run(self) -> None:
        look_at = time.monotonic()
        while True:
            if time.monotonic() >= look_at:
                try:
                    self._look()
                except Exception:  # whatever it is, the other volumes go on
                    log.exception("volumes in %s", self._directory)
                look_at = time.monotonic() + POLL_S
            for key, _ in self._selector.select(max(0.0, look_at - time.monotonic())):
                if not isinstance(key.data, _Volume):
                    return
                self._accept(key.data)

    def _accept(self, volume: _Volume) -> None:
        try:
            sock, _ = volume.listening.accept()
        except BlockingIOError:
            return  # who wanted in has gone
        except OSError:
            time.sleep(_PAUSE_S)
            return
        self._server.adopt(SocketConnection(sock, unix.DOOR, grants=True), volume.scope)

    def _look(self) -> None:
        """Compare what is there with what is listened at."""
        try:
            with os.scandir(self._directory) as entries:
                names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except FileNotFoundError:
            names = set[str]()
        except OSError as error:
            self._say("", f"cannot be looked at: {error.strerror or error}")
            return  # that says nothing about what is in it
        for name in self._volumes.keys() - names:
            self._withdraw(name)
        for name in (self._bad.keys() | self._said.keys()) - names:
            self._bad.pop(name, None)
            self._said.pop(name, None)
        for name in sorted(names):
            self._look_at(name)
        self._server.node.volume_count = len(self._volumes)

    def _look_at(self, name: str) -> None:
        seen = _seen(f"{self._directory}/{name}/{ACCESS}")
        volume = self._volumes.get(name)
        if volume is not None and volume.seen == seen:
            if _inode(f"{self._directory}/{name}/{MOUNT}/{SOCKET}") != volume.inode:
                self._listen(name, volume.seen, volume.scope)  # somebody took the socket away
            return
        if volume is not None:
            self._withdraw(name)
        if seen is None or self._bad.get(name) == seen:
            return
        try:
            found, identity = _read(f"{self._directory}/{name}/{ACCESS}")
        except OSError as error:
            self._say(name, f"{ACCESS}: {error.strerror or error}")
            return  # it may work the next time
        except BadRequest as error:
            self._bad[name] = seen
            self._say(name, f"{ACCESS}: {error}")
            return
        self._listen(name, found, self._server.node.admission.scope_of(identity))

    def _listen(self, name: str, seen: Seen, scope: Scope) -> None:
        """Make the socket; where that does not work, it is tried again at the next look."""
        self._end(name)
        if len(self._volumes) >= limits.VOLUMES_MAX:
            self._say(name, f"there are {limits.VOLUMES_MAX} volumes already")
            return
        try:
            listening, inode = _listening(f"{self._directory}/{name}/{MOUNT}")
        except OSError as error:
            self._say(name, f"no socket in {MOUNT}/: {error.strerror or error}")
            return
        self._said.pop(name, None)
        self._volumes[name] = volume = _Volume(seen, scope, listening, inode)
        self._selector.register(listening, selectors.EVENT_READ, volume)
        log.info("volume %s: for %s", name, scope.who)

    def _withdraw(self, name: str) -> None:
        """Its reader may not read on as it did."""
        volume = self._volumes[name]
        self._end(name)
        self._server.withdraw(volume.scope)
        log.info("volume %s: no longer for %s", name, volume.scope.who)

    def _end(self, name: str) -> None:
        """Stop listening, if anybody does."""
        volume = self._volumes.pop(name, None)
        if volume is None:
            return
        self._selector.unregister(volume.listening)
        volume.listening.close()
        path = f"{self._directory}/{name}/{MOUNT}/{SOCKET}"
        if _inode(path) == volume.inode:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _say(self, name: str, what: str) -> None:
        if self._said.get(name) != what:
            self._said[name] = what
            log.warning("volume %s: %s", f"{self._directory}/{name}", what)


def _seen(path: str) -> Seen | None:
    """None: there is no such file."""
    try:
        return _signature(os.lstat(path))
    except OSError:
        return None


def _signature(found: os.stat_result) -> Seen:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return -1


def _read(path: str) -> tuple[Seen, access.VolumeAccess]:
    """The identity, and which file it was read from."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BadRequest("not a file")
        with open(descriptor, "rb", closefd=False) as file:
            return _signature(found), access.parse_volume(file.read(access.VOLUME_BYTES_MAX + 1))
    finally:
        os.close(descriptor)


def _listening(directory: str) -> tuple[socket.socket, int]:
    """A listening socket in this directory, in place of what a node that died left there, and its file's inode."""
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(SOCKET, dir_fd=place, follow_symlinks=False).st_mode):
                raise FileExistsError(f"{SOCKET} is there and is no socket")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NEW, dir_fd=place)
        # Through the descriptor: the path itself may be longer than a socket's address can be.
        new = f"/proc/self/fd/{place}/{_NEW}"
        listening.bind(new)
        os.chmod(new, 0o666)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        os.rename(_NEW, SOCKET, src_dir_fd=place, dst_dir_fd=place)
        return listening, os.stat(SOCKET, dir_fd=place, follow_symlinks=False).st_ino
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(place)

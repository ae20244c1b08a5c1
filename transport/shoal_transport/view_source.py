"""Where the view comes from: a file or an http(s) URL, looked at again and again by a thread.

`ViewSource.read` gives a view when there is another one than before, and nothing otherwise: a file is read only when
its inode, time or size changed, a URL is asked with the ETag of what is known. What cannot be reached or is no view is
an error that names the place and the field, and is said again at each read until it is put right. So whoever writes a
file should replace it as a whole, as `write` does: one that is rewritten in place is half a view for a moment, which
is an error of that moment and nothing worse.

`Follower` is the thread. It goes on whatever happens: a node whose view cannot be read lives with the one it has. Only
a later epoch is passed on, because two views of one epoch would have two nodes disagree and never notice.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import stat
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from shoal_core import limits, view
from shoal_core.errors import ConfigError, DeadlineExceeded, Forbidden, NotFound, OriginError, ShoalError
from shoal_transport import file_lock

BODY_BYTES_MAX = 16 * limits.MIB
"""Ten thousand nodes are about 2 MiB."""

READ_S = 5.0
"""For one look of a follower."""

_CHUNK_BYTES = 256 * limits.KIB
_SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was read may change again without a later time: clocks have ticks."""

_TURN_S = 10.0
"""For whoever else is writing the same view."""

_CLOSE_S = 0.5
"""A look that waits for a server is left to end by itself: nothing comes of it any more."""

_LOG = logging.getLogger("shoal.view")


class _Found(NamedTuple):
    data: bytes
    mark: tuple[int, int, int] | str | None
    """What stands for the data: a file's identity, an ETag; None: nothing does."""


class ViewSource:
    """An absolute path, a file:// URL or an http(s) URL. Reads are for one thread."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._path = _path_of(location)
        self._found: _Found | None = None
        """At the last read that ended well."""

    def read(self, timeout_s: float) -> view.View | None:
        """The view, when it is another one than at the last read that ended well.

        ConfigError for what is no view; NotFound, Forbidden or OriginError where it cannot be had. No wait for a server
        is longer than `timeout_s`, and an answer that takes longer than that in all is given up.
        """
        found = self._fetch(timeout_s) if self._path is None else self._load(self._path)
        if found is None:
            return None
        same = self._found is not None and self._found.data == found.data
        changed = None if same else _decoded(self.location, found.data)
        self._found = found  # not before it was understood: else an error would be said once and then look mended
        return changed

    def write(self, new: view.View) -> None:
        """Replace the file, if it holds the view before: its epoch is one less. No file is epoch 0.

        ConfigError when it does not, as when somebody else wrote meanwhile: read again, decide again.
        """
        if self._path is None:
            raise ConfigError(f"{self.location}: only a view in a file can be written")
        path = os.path.realpath(self._path)  # else a link would become a file of its own
        data = msgspec.json.format(msgspec.json.encode(new), indent=2) + b"\n"
        _decoded(f"the view to be written to {path}", data)
        try:
            with _turn(path):
                self._expect_before(path, new.epoch)
                _replace(path, data)
        except OSError as error:
            if isinstance(error, ShoalError):
                raise
            raise _unreachable(path, error) from error

    def _expect_before(self, path: str, epoch: int) -> None:
        present = 0
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            present = _decoded(path, file.read(BODY_BYTES_MAX + 1)).epoch
        if present != epoch - 1:
            raise ConfigError(f"{path}: epoch {epoch} cannot follow epoch {present}; read the view again")

    def _load(self, path: str) -> _Found | None:
        try:
            # Without O_NONBLOCK a pipe of that name would keep us waiting for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"{path}: not a file")
                identity = status.st_ino, status.st_mtime_ns, status.st_size
                if self._found is not None and self._found.mark == identity:
                    return None
                settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS
                with open(descriptor, "rb", closefd=False) as file:
                    return _Found(file.read(BODY_BYTES_MAX + 1), identity if settled else None)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreachable(path, error) from error

    def _fetch(self, timeout_s: float) -> _Found | None:
        deadline = time.monotonic() + timeout_s
        headers = {"User-Agent": "shoal", "Accept": "application/json"}
        known = self._found.mark if self._found is not None else None
        if isinstance(known, str):
            headers["If-None-Match"] = known
        request = urllib.request.Request(self.location, headers=headers)
        try:
            with _OPENER.open(request, timeout=timeout_s) as response:
                return _Found(_body(self.location, response, deadline), response.headers.get("ETag"))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == http.HTTPStatus.NOT_MODIFIED and known is not None:
                    return None
                raise _refused(self.location, error) from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            if isinstance(error, ShoalError):
                raise
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise OriginError(f"{self.location}: {str(reason) or type(reason).__name__}") from error


# The environment's proxies are the way out of the site (a pod often has them set for its origin); a view is kept by
# the site itself, often at an address of the cluster's own that a proxy neither knows nor may be told of.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _path_of(location: str) -> str | None:
    """Of the file; None for a URL."""
    if location.startswith("/"):
        return location
    try:
        parts = urlsplit(location)
    except ValueError as error:
        raise ConfigError(f"view: {location!r}: {error}") from None
    if "@" in parts.netloc:
        raise ConfigError("view: a URL with a user's name in it is not understood, and would be shown in every error")
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return unquote(parts.path)
    if parts.scheme in ("http", "https") and parts.netloc:
        return None
    raise ConfigError(f"view: {location!r} is neither an absolute path nor an http URL")


def _body(location: str, response: http.client.HTTPResponse, deadline: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        if len(data) > BODY_BYTES_MAX:
            break
        if time.monotonic() > deadline:
            raise OriginError(f"{location}: the answer did not end in time")
    else:
        if response.length:
            raise OriginError(f"{location}: the answer ended {response.length} bytes early")
    return bytes(data)


def _decoded(place: str, data: bytes) -> view.View:
    if len(data) > BODY_BYTES_MAX:
        raise ConfigError(f"{place}: larger than {BODY_BYTES_MAX} bytes")
    try:
        plain: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{place}: no JSON: {error}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{place}: not a JSON object with an epoch and nodes")
    try:
        return view.parse(plain)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _unreachable(path: str, error: OSError) -> ShoalError:
    text = f"{path}: {error.strerror or error}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(text)
    return Forbidden(text) if isinstance(error, PermissionError) else OriginError(text)


def _refused(location: str, error: urllib.error.HTTPError) -> ShoalError:
    text = f"{location}: {error.code} {error.reason}"
    if error.code in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
        return NotFound(text)
    if error.code in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        return Forbidden(text)
    return OriginError(text)


@contextlib.contextmanager
def _turn(path: str) -> Generator[None]:
    """Nobody else of us writes the file meanwhile. The lock's file stays: removing it would let two in."""
    lock = f"{path}.lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not file_lock.take(descriptor, time.monotonic() + _TURN_S):
            raise DeadlineExceeded(f"{lock}: somebody else holds it for {_TURN_S:g} s already")
        yield
    finally:
        os.close(descriptor)


def _replace(path: str, data: bytes) -> None:
    """After a power cut there is the old file or the new one."""
    directory = os.path.dirname(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            _like(path, descriptor)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _like(path: str, descriptor: int) -> None:
    """Whoever could read the file before can read it afterwards, if root is not the one who kept it."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        os.fchmod(descriptor, 0o644)
        return
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


class Follower:
    """Reads the source now and every `poll_s`, and calls `adopt` with each later view, in a thread of its own."""

    def __init__(self, source: ViewSource, poll_s: float, adopt: Callable[[view.View], object]) -> None:
        self.last_error: str | None = None
        """Why what the source holds is not what was adopted last; None: it is."""
        self._source = source
        self._poll_s = poll_s
        self._adopt = adopt
        self._seen: view.View | None = None
        self._adopted: view.View | None = None
        self._read_at = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shoal-view", daemon=True)
        self._thread.start()

    @property
    def age_s(self) -> float:
        """How long ago the source was last read well; before that, since the follower was made."""
        return time.monotonic() - self._read_at

    def close(self) -> None:
        """Nothing is adopted that was not being adopted already. Twice is fine, and so is from inside `adopt`."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while not self._closed.is_set():
            unforeseen: BaseException | None = None
            try:
                error = self._look()
            except ShoalError as failed:
                error = str(failed)
            except Exception as failed:  # of `adopt`, or a bug: either way the next look may fare better
                error, unforeseen = f"{self._source.location}: {type(failed).__name__}: {failed}", failed
            if error is not None and error != self.last_error:
                _LOG.warning("the view is not followed: %s", error, exc_info=unforeseen)
            elif error is None and self.last_error is not None:
                _LOG.info("the view is followed again: %s", self._source.location)
            self.last_error = error
            self._closed.wait(self._poll_s)

    def _look(self) -> str | None:
        """What is wrong with the view that was read, if anything."""
        self._seen = self._source.read(READ_S) or self._seen
        self._read_at = time.monotonic()
        seen, adopted = self._seen, self._adopted
        if seen is None or seen == adopted or self._closed.is_set():
            return None
        if adopted is not None and seen.epoch <= adopted.epoch:
            return f"{self._source.location}: it changed, but epoch {seen.epoch} is not later than {adopted.epoch}"
        self._adopt(seen)
        self._adopted = seen
        return None

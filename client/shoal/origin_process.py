"""Reads for a process that must not use obstore itself: the forked child of one that did.

obstore's threads do not survive a fork, and a call in the child would never end. Such a child starts a fresh
interpreter (this module, run) that reads in its place: one request after the other over a pipe, until the pipe ends.
Every wait ends at the caller's deadline; a helper that is late or broken is killed, and the next request starts one.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import threading
import time

import msgspec

from shoal_core.errors import DeadlineExceeded, OriginError, ShoalError, from_wire, to_wire
from shoal_transport.origins import ObjectMeta

_LENGTH = struct.Struct("<I")


class Request(msgspec.Struct, array_like=True, frozen=True):
    """A HEAD where `size` is None, else a read of `length` bytes of exactly that version."""

    url: str
    timeout_s: float
    size: int | None = None
    etag: str = ""
    offset: int = 0
    length: int = 0


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """Followed by the bytes asked for, unless `code` names an error."""

    code: int = 0
    text: str = ""
    size: int = 0
    etag: str = ""


_answers = msgspec.msgpack.Decoder(Answer)
_requests = msgspec.msgpack.Decoder(Request)


class OriginProcess:
    """The helper of this process. Thread-safe: one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def head(self, url: str, deadline: float) -> ObjectMeta:
        """The object as it is now."""
        answer = self._ask(Request(url, _seconds(deadline)), memoryview(b""), deadline)
        return ObjectMeta(url, answer.size, answer.etag)

    def fetch(self, meta: ObjectMeta, offset: int, into: memoryview, deadline: float) -> None:
        """Fill `into` with this version's bytes from `offset`."""
        request = Request(meta.url, _seconds(deadline), meta.size, meta.etag, offset, len(into))
        self._ask(request, into, deadline)

    def _ask(self, request: Request, into: memoryview, deadline: float) -> Answer:
        if not self._lock.acquire(timeout=_seconds(deadline)):
            raise DeadlineExceeded(f"{request.url}: others were being read until the deadline")
        try:
            answer = self._exchange(request, into, deadline)
        except BaseException:
            self._end()
            raise
        finally:
            self._lock.release()
        if answer.code:
            raise from_wire(answer.code, answer.text)
        return answer

    def _exchange(self, request: Request, into: memoryview, deadline: float) -> Answer:
        process = self._process
        if process is None or process.poll() is not None:
            command = [sys.executable, "-m", "shoal.origin_process"]
            process = self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        assert process.stdin is not None and process.stdout is not None
        output = process.stdout.fileno()
        try:
            process.stdin.write(_framed(request))  # a few hundred bytes: they fit the pipe
            size = _LENGTH.unpack(_receive(output, memoryview(bytearray(_LENGTH.size)), deadline))[0]
            answer = _answers.decode(_receive(output, memoryview(bytearray(size)), deadline))
            if not answer.code:
                _receive(output, into, deadline)
        except (BrokenPipeError, EOFError, msgspec.DecodeError) as error:
            raise OriginError(f"{request.url}: the process that reads for a forked child ended") from error
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _framed(body: Request | Answer) -> bytes:
    data = msgspec.msgpack.encode(body)
    return _LENGTH.pack(len(data)) + data


def _receive(descriptor: int, view: memoryview, deadline: float) -> memoryview:
    whole = view
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while view:
        if not poll.poll(_seconds(deadline) * 1000) and time.monotonic() >= deadline:
            raise DeadlineExceeded("the origin did not answer a forked child within the deadline")
        count = os.readv(descriptor, [view])
        if not count:
            raise EOFError
        view = view[count:]
    return whole


def _seconds(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def main() -> None:
    """Answer requests until the pipe ends."""
    from shoal import origin_fallback

    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(length := source.read(_LENGTH.size)) == _LENGTH.size:
        request = _requests.decode(source.read(_LENGTH.unpack(length)[0]))
        data = bytearray(request.length)
        deadline = time.monotonic() + request.timeout_s
        try:
            if request.size is None:
                meta = origin_fallback.head_here(request.url, deadline)
            else:
                meta = ObjectMeta(request.url, request.size, request.etag)
                origin_fallback.fetch_here(meta, request.offset, memoryview(data), deadline)
            answer = Answer(size=meta.size, etag=meta.etag)
        except ShoalError as error:
            answer, data = Answer(*to_wire(error)), bytearray()
        sink.write(_framed(answer) + data)
        sink.flush()


if __name__ == "__main__":
    main()

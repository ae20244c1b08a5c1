"""The other ends of the references: as little Python as can do the same work. Run as a process of its own.

`echo PATH`: a Unix socket that sends back each 64-byte message, one connection. `send SIZE [HOST]`: a TCP server with
SIZE bytes in a mapped memfd; each 16-byte request (offset, length) is answered by sending that range straight from the
mapping, one thread per connection. `far PORT SECONDS`: a relay to a server on this machine that hands each request on
so much later, as if the server were that far away; replies pass at once.
"""

from __future__ import annotations

import mmap
import os
import random
import socket
import struct
import sys
import threading
import time

MESSAGE_BYTES = 64
REQUEST = struct.Struct("<QQ")


def content(size: int) -> bytes:
    """What the `send` peer holds, the same in both processes: one MiB over and over."""
    return random.Random(7).randbytes(1 << 20) * (size >> 20)


def echo(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen(1)
        print("ready", flush=True)
        peer, _ = listening.accept()
        message = bytearray(MESSAGE_BYTES)
        while peer.recv_into(message, MESSAGE_BYTES, socket.MSG_WAITALL) == MESSAGE_BYTES:
            peer.sendall(message)


def send(size: int, host: str) -> None:
    descriptor = os.memfd_create("bare")
    os.ftruncate(descriptor, size)
    memory = memoryview(mmap.mmap(descriptor, size))
    memory[:] = content(size)
    with socket.create_server((host, 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            peer, _ = listening.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_send, args=(peer, memory), daemon=True).start()


def _send(peer: socket.socket, memory: memoryview) -> None:
    request = bytearray(REQUEST.size)
    while peer.recv_into(request, REQUEST.size, socket.MSG_WAITALL) == REQUEST.size:
        offset, length = REQUEST.unpack(request)
        peer.sendall(memory[offset : offset + length])


def far(port: int, delay_s: float) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            peer, _ = listening.accept()
            server = socket.create_connection(("127.0.0.1", port))
            for source, target, wait_s in ((peer, server, delay_s), (server, peer, 0.0)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_relay, args=(source, target, wait_s), daemon=True).start()


def _relay(source: socket.socket, target: socket.socket, wait_s: float) -> None:
    buffer = memoryview(bytearray(1 << 18))
    try:
        while size := source.recv_into(buffer):
            if wait_s:
                time.sleep(wait_s)
            target.sendall(buffer[:size])
        target.shutdown(socket.SHUT_WR)
    except OSError:  # one side ended its connection
        source.close()
        target.close()


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(sys.argv[2])
    elif sys.argv[1] == "far":
        far(int(sys.argv[2]), float(sys.argv[3]))
    else:
        send(int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1")

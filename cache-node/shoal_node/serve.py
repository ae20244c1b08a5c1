"""The doors of a node: connections are accepted, and each gets a session in a thread of its own.

One thread per connection, blocked in the kernel while idle, at most so many as descriptors allow. What a session does
with each verb is in `session`; who a connection is, in `admission`. A listener that knows who comes through it (the
socket of a volume, see `volumes`) gives that with each connection.
"""

from __future__ import annotations

import resource
import threading
import time

from shoal_core import limits
from shoal_node.administration import Administration
from shoal_node.resolver import Resolver
from shoal_node.runtime import Node
from shoal_node.scope import Scope
from shoal_node.session import Session
from shoal_transport.interface import Connection, Listener

_DESCRIPTORS_KEPT = 256
"""Connections leave so many descriptors to segments, the disk tier and origins: else no miss could be filled."""


class Server:
    """Accepts on listeners and runs a session per connection."""

    def __init__(self, node: Node, resolver: Resolver) -> None:
        self.node = node
        self.resolver = resolver
        self.administration = Administration(node, resolver)
        self._listeners: list[Listener] = []
        self._connections: dict[Connection, Scope | None] = {}
        self._lock = threading.Lock()
        self._closed = False
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        kept = _DESCRIPTORS_KEPT
        if node.config.access.volumes_directory is not None:
            kept += min(limits.VOLUMES_MAX, descriptors // 4)
        self._connections_max = min(limits.CLIENTS_MAX, max(descriptors - kept, 1))
        self._empty_since = time.monotonic()

    def idle_s(self) -> float:
        """How long no connection has been open; 0 while one is."""
        return 0.0 if self._connections else time.monotonic() - self._empty_since

    @property
    def addresses(self) -> list[str]:
        return [listener.address for listener in self._listeners]

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), name="shoal-accept", daemon=True).start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        for listener in self._listeners:
            listener.close()
        for connection in connections:
            connection.close()

    def adopt(self, connection: Connection, scope: Scope | None = None) -> None:
        """Serve a connection that was accepted. `scope`: what its door lets in; None: as `admission` says."""
        with self._lock:
            full = self._closed or len(self._connections) >= self._connections_max
            if not full:
                self._connections[connection] = scope
        if full:
            connection.close()
            return
        threading.Thread(target=self._serve, args=(connection, scope), name="shoal-session", daemon=True).start()

    def withdraw(self, scope: Scope) -> None:
        """Nothing more is answered on the connections that this was given with; their threads close them."""
        with self._lock:
            ending = [connection for connection, given in self._connections.items() if given is scope]
        for connection in ending:
            connection.hang_up()

    def _accept(self, listener: Listener) -> None:
        while (connection := listener.accept()) is not None:
            self.adopt(connection)

    def _serve(self, connection: Connection, scope: Scope | None) -> None:
        try:
            Session(self, connection, scope).run()
        finally:
            connection.close()
            with self._lock:
                self._connections.pop(connection, None)
                if not self._connections:
                    self._empty_since = time.monotonic()

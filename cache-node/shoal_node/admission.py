"""Who comes in at which door: everybody, or who brings a token, or who holds the socket of a volume.

The node's own socket and the memory door serve whoever reaches them: their places are private. With a key file, the TCP
door asks for a token, and the node signs tokens of its own to be let in by others. The key file is looked at each time
and read again when it changed, so that a pool's key can be replaced while nodes run; meanwhile the two ends may differ,
and readers take their next best way.

The clocks of a pool must agree to half a minute: a token says when it ends, and a node's lives for PEER_TOKEN_S.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from shoal_core import access
from shoal_core.config import NodeConfig
from shoal_core.errors import ConfigError, Forbidden
from shoal_node.scope import Scope

PEER_TOKEN_S = 60


class Admitted(NamedTuple):
    scope: Scope | None
    """None: everything."""
    expires_s: float | None
    """When nothing more is answered, seconds since 1970; None: never."""


EVERYTHING = Admitted(None, None)


class Admission:
    """One for the whole node."""

    def __init__(self, config: NodeConfig) -> None:
        """ConfigError for a key that cannot be used."""
        self._access = config.access
        self._node_name = config.node_name
        self._key = _KeyFile(config.access.key_file) if config.access.key_file is not None else None

    def enter(self, door: str, token: str) -> Admitted:
        """What a connection through that door may do; Forbidden says why nothing."""
        if self._key is None or door != "tcp":
            return EVERYTHING
        if not token:
            raise Forbidden(
                f"node {self._node_name} answers only to a token of its pool, and none was sent "
                "(a pod's volume has one; token_file in client.json names it)"
            )
        claims = self._verified(token)
        if claims.role != "reader":
            return Admitted(None, claims.expires_s)
        return Admitted(Scope(claims.who, claims.namespace, claims.datasets), claims.expires_s)

    def scope_of(self, volume: access.VolumeAccess) -> Scope:
        """What the reader at a volume's socket may do."""
        shares = self._access.shares_memory_with(volume.namespace)
        return Scope(volume.who, volume.namespace, volume.datasets, shares)

    def peer_token(self) -> str:
        """For one connection to another node; empty where no token is asked for."""
        if self._key is None:
            return ""
        expires_s = int(time.time()) + PEER_TOKEN_S
        claims = access.Claims(self._access.pool, "peer", self._node_name, expires_s=expires_s)
        return access.sign(self._key.read(), claims)

    def check_operator(self, authorization: str) -> None:
        """Of an HTTP request; Forbidden unless it comes from an operator of the pool, where that is to be proved."""
        if self._key is None:
            return
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Forbidden("an operator's token is wanted: Authorization: Bearer TOKEN")
        claims = self._verified(token.strip())
        if claims.role != "operator":
            raise Forbidden(f"the token of {claims.who} is a {claims.role}'s, not an operator's")

    def _verified(self, token: str) -> access.Claims:
        assert self._key is not None
        return access.verify(self._key.read(), token, time.time(), self._access.pool)


class _KeyFile:
    """The pool's secret, as it is now."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._key = b""
        try:
            self._look()
        except OSError as error:
            raise ConfigError(f"access.key_file: {path}: {error.strerror or error}") from error
        if not self._key:
            raise ConfigError(f"access.key_file: {path}: a key has at least {access.KEY_BYTES_MIN} bytes")

    def read(self) -> bytes:
        """The last one that could be used."""
        try:
            self._look()
        except OSError:
            pass  # it is being replaced
        return self._key

    def _look(self) -> None:
        found = os.stat(self._path)
        seen = found.st_ino, found.st_mtime_ns, found.st_size
        if seen != self._seen:
            key = self._path.read_bytes()
            self._seen = seen
            if len(key) >= access.KEY_BYTES_MIN:
                self._key = key

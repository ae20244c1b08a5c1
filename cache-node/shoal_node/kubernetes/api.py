"""The API server as a node speaks to it: get an object, list and watch one ConfigMap. Blocking, for threads.

Where it is and who the node is come from what kubelet puts into each pod, or, outside of one, from the JSON file that
`SHOAL_KUBERNETES_API` names: {"server", "ca_file", "token_file"}. The token is read anew for each request, because
kubelet replaces it. A connection serves one request: a node makes a few a minute, and one kept open would go to the
same server when others came to share its work. Every wait for the network has an end.

Errors say which request failed, and what the server said of it; what was asked for and what came back is in none.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from shoal_core import limits
from shoal_core.errors import ConfigError, ShoalError

_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
OVERRIDE = "SHOAL_KUBERNETES_API"

CALL_S = 5.0
SILENCE_S = 70.0
"""A watch that says nothing for so long is dead: the server sends a bookmark about every minute."""
WATCH_S = 300
"""After so long the server ends a watch, and the next one may go to another server."""
LINE_BYTES_MAX = 4 * limits.MIB
"""An object has at most about 1 MiB."""


class ApiError(ShoalError):
    """The API server could not be asked, or refused. `status` is HTTP's; 0: it gave no answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """Any thread may call."""

    def __init__(self, server: str, ca_file: str | None, token_file: str | None) -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"Kubernetes API: {server!r} is not an http(s) URL")
        self.server = server
        self._is_https = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._is_https else 80)
        self._ca_file = ca_file
        self._token_file = token_file
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False

    def get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        """One object or list."""
        with self._answer(path, query or {}, CALL_S) as answer:
            body = answer.read(LINE_BYTES_MAX + 1)
        return _decoded(path, body)

    def watch(self, path: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Events, until the server ends the watch."""
        query = query | {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S)}
        with self._answer(path, query, SILENCE_S) as answer:
            while line := answer.readline(LINE_BYTES_MAX + 1):
                yield _decoded(path, line)

    def close(self) -> None:
        """Whoever waits for an answer gets an ApiError, and so does whoever asks from now on."""
        with self._lock:
            self._closed = True
            for each in self._open:
                with contextlib.suppress(OSError):
                    # Past the TLS layer, which belongs to the thread that reads.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _answer(self, path: str, query: dict[str, str], silence_s: float) -> Generator[http.client.HTTPResponse]:
        target = f"{quote(path)}?{urlencode(query)}" if query else quote(path)
        connection = self._connection()
        opened: socket.socket | None = None
        try:
            connection.connect()
            opened = connection.sock
            with self._lock:
                if self._closed or opened is None:
                    raise ApiError("the node is ending")
                self._open.add(opened)
            opened.settimeout(silence_s)
            connection.request("GET", target, headers=self._headers())
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise ApiError(f"{self.server}{path}: {_refusal(answer)}", answer.status)
            yield answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, ShoalError):
                raise
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise ApiError(f"{self.server}{path}: {reason}") from error
        finally:
            with self._lock:
                if opened is not None:
                    self._open.discard(opened)
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_https:
            return http.client.HTTPConnection(self._host, self._port, timeout=CALL_S)
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:
            raise ApiError(f"{self._ca_file}: {error.strerror or error}") from error
        # Some clusters' own authorities lack extensions that only the strict check asks for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return http.client.HTTPSConnection(self._host, self._port, timeout=CALL_S, context=context)

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "shoal-node"}
        if self._token_file is not None:
            try:
                headers["Authorization"] = f"Bearer {Path(self._token_file).read_text('utf-8').strip()}"
            except OSError as error:
                raise ApiError(f"{self._token_file}: {error.strerror or error}") from error
        return headers


def from_environment() -> Api:
    """ConfigError where the environment names none."""
    override = os.environ.get(OVERRIDE)
    if override:
        try:
            given = json.loads(Path(override).read_text("utf-8"))
            return Api(given["server"], given.get("ca_file"), given.get("token_file"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, ShoalError):
                raise
            raise ConfigError(f"{OVERRIDE}: {override}: {type(error).__name__}: {error}") from error
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError("cluster.view: kubernetes: works inside a pod, where KUBERNETES_SERVICE_HOST is set")
    host = f"[{host}]" if ":" in host else host
    return Api(f"https://{host}:{port}", f"{_ACCOUNT}/ca.crt", f"{_ACCOUNT}/token")


def _decoded(path: str, body: bytes) -> dict[str, Any]:
    if len(body) > LINE_BYTES_MAX:
        raise ApiError(f"{path}: an answer of more than {LINE_BYTES_MAX} bytes")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(f"{path}: the answer is no JSON, or half of it") from None
    if not isinstance(found, dict):
        raise ApiError(f"{path}: the answer is no JSON object")
    return found


def _refusal(answer: http.client.HTTPResponse) -> str:
    """What the server says, as far as it says it as Kubernetes does."""
    said: object = None
    with contextlib.suppress(ValueError, http.client.HTTPException):
        status = json.loads(answer.read(64 * limits.KIB))
        said = status.get("message") if isinstance(status, dict) else None
    return f"{answer.status} {answer.reason}" + (f": {str(said)[:300]}" if said else "")

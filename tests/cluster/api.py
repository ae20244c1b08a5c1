"""The API server over plain HTTPS as an administrator: for what a kubectl process would be too slow for.

One connection per thread and object, kept open. Bodies are JSON both ways.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from typing import Any, Self

from tests.cluster.layout import Layout
from tests.cluster.processes import ClusterError

_TIMEOUT_S = 20.0


class Api:
    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host = host
        self._port = port
        self._context = context
        self._connection: http.client.HTTPSConnection | None = None

    @classmethod
    def of(cls, layout: Layout, who: str = "admin") -> Api:
        context = ssl.create_default_context(cafile=str(layout.certificate("ca")))
        context.load_cert_chain(layout.certificate(who), layout.key(who))
        return cls(layout.api_address, layout.settings.api_port, context)

    def request(self, method: str, path: str, body: object = None, media: str = "application/json") -> tuple[int, Any]:
        """Status and answer; OSError where nobody answers."""
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._host, self._port, context=self._context, timeout=_TIMEOUT_S
            )
        content = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, path, content, {"Content-Type": media, "Accept": "application/json"})
            answer = self._connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise OSError(f"{method} {path}: {error}") from error
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(text)
        return answer.status, text

    def get(self, path: str) -> Any:
        """The object there; ClusterError where there is none."""
        status, answer = self.request("GET", path)
        if status != 200:
            raise ClusterError(f"GET {path}: {status} {answer}")
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

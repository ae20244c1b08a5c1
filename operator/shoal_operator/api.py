"""One door to the Kubernetes API: raw calls through the official client's ApiClient, JSON in and JSON out.

No generated models: an object is the plain data that the server sent, and what is written is exactly what was decided.
A call has a time limit, and a failure is one `ApiError` with the server's own words. The token is read from its file
again every half minute, because kubelet replaces it there while the process runs.

Where the server is comes from what kubelet puts into every pod, or from the JSON file that SHOAL_KUBERNETES_API names
({"server", "ca_file", "token_file"}), for an operator that runs outside the cluster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from shoal_operator.names import FIELD_MANAGER

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_FRESH_S = 30.0

CALL_TIMEOUT_S = 5.0
"""Below the term of the Lease: a call of a leader that lost its term ends before another leader begins."""

_CONNECTIONS_MAX = 32


class ApiError(Exception):
    """The server refused, or (status 0) could not be reached."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{reason or status}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def conflict(self) -> bool:
        return self.status == 409


@dataclass(frozen=True)
class Server:
    """Where the API is, and whom it is told that we are."""

    url: str
    ca_file: str | None
    token_file: str | None


def find_server(environment: Mapping[str, str]) -> Server:
    """LookupError where neither a pod's environment nor SHOAL_KUBERNETES_API says where the API is."""
    override = environment.get("SHOAL_KUBERNETES_API")
    if override:
        values = json.loads(Path(override).read_text())
        return Server(values["server"].rstrip("/"), values.get("ca_file"), values.get("token_file"))
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise LookupError("not in a pod, and SHOAL_KUBERNETES_API names no file that says where the API server is")
    host = f"[{host}]" if ":" in host else host
    return Server(f"https://{host}:{port}", str(_SERVICE_ACCOUNT / "ca.crt"), str(_SERVICE_ACCOUNT / "token"))


class Token:
    """The account's token, as fresh as the file."""

    def __init__(self, file: str | None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._now_s = now_s
        self._read_s = float("-inf")
        self._header: dict[str, str] = {}

    def headers(self) -> dict[str, str]:
        if self._file and self._now_s() - self._read_s > _TOKEN_FRESH_S:
            self._header = {"Authorization": f"Bearer {Path(self._file).read_text().strip()}"}
            self._read_s = self._now_s()
        return self._header

    def forget(self) -> None:
        """The server refused it: read the file again at the next call."""
        self._read_s = float("-inf")


class Api:
    """Calls to one API server. `last_answer_s` says when it last answered anything (monotonic clock)."""

    def __init__(self, server: Server, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.server = server
        self.token = Token(server.token_file, now_s)
        self.last_answer_s = float("-inf")
        self.down_since_s: float | None = None
        self.up_since_s = float("-inf")
        self._now_s = now_s
        configuration = Configuration(host=server.url, ssl_ca_cert=server.ca_file)
        configuration.connection_pool_maxsize = _CONNECTIONS_MAX
        self._client = ApiClient(configuration)
        self._client.user_agent = FIELD_MANAGER

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        query: Mapping[str, str] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> bytes:
        """The answer's body; ApiError for anything that is not a success."""
        url = f"{self.server.url}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"User-Agent": FIELD_MANAGER, "Accept": accept, "Content-Type": content_type, **self.token.headers()}
        try:
            answer = await self._client.call_api(
                method, url, headers, body, _request_timeout=aiohttp.ClientTimeout(total=timeout_s)
            )
            content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.note(answered=False)
            raise ApiError(0, "Unreachable", f"{type(error).__name__} {error}".strip()) from None
        self.note(answered=True)
        if 200 <= answer.status < 300:
            return content
        if answer.status == 401:
            self.token.forget()
        raise _refusal(answer.status, content, answer.headers.get("Retry-After"))

    async def json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return msgspec.json.decode(await self.call(method, path, **options))

    def note(self, *, answered: bool) -> None:
        """Keeps the account of when the server could be reached, which excuses watches that are silent meanwhile."""
        now_s = self._now_s()
        if answered:
            self.last_answer_s = now_s
            if self.down_since_s is not None or self.up_since_s == float("-inf"):
                self.down_since_s, self.up_since_s = None, now_s
        elif self.down_since_s is None:
            self.down_since_s = now_s


def _refusal(status: int, content: bytes, retry_after: str | None) -> ApiError:
    try:
        values = msgspec.json.decode(content)
        reason, message = str(values.get("reason") or ""), str(values.get("message") or "")
    except (msgspec.DecodeError, AttributeError):
        reason, message = "", content[:200].decode(errors="replace")
    after_s = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return ApiError(status, reason, message, after_s)

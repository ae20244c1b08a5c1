"""The pools' access keys: Secrets in the release's namespace, made once, and what the operator signs with them.

A key is read once a minute at most. Everything that the operator says to a node carries a token of role operator that
holds for ten minutes; it is made anew when five are over.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from shoal_core import access
from shoal_operator import applying, desired, names
from shoal_operator.api import Api, ApiError
from shoal_operator.kinds import KINDS
from shoal_operator.model import Pool

KEY_BYTES = 32
_FRESH_S = 60.0
_TOKEN_S = 600
_TOKEN_FRESH_S = 300.0


@dataclass
class _Known:
    key: bytes | None
    at_s: float
    token: str = ""
    token_at_s: float = float("-inf")


class Keys:
    """The keys of all pools, as far as they were asked for."""

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        instance: str,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._instance = instance
        self._now_s = now_s
        self._wall_s = wall_s
        self._known: dict[str, _Known] = {}

    async def get(self, pool: str) -> bytes | None:
        """None where the Secret is missing or holds no key. ApiError when nobody answers."""
        known = self._known.get(pool)
        if known is not None and known.key is not None and self._now_s() - known.at_s < _FRESH_S:
            return known.key
        key: bytes | None = None
        try:
            secret = await self._api.json("GET", KINDS["Secret"].path(self._namespace, names.key_of_pool(pool)))
            key = base64.b64decode(str(secret.get("data", {}).get("key", ""))) or None
        except ApiError as error:
            if not error.not_found:
                raise
        if known is None or known.key != key:
            self._known[pool] = _Known(key, self._now_s())
        else:
            known.at_s = self._now_s()
        return key

    async def make(self, pool: Pool) -> None:
        """Random, and only if there is none: two operators that make one at once end with the same."""
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": names.key_of_pool(pool.name),
                "namespace": self._namespace,
                "labels": names.pod_labels(pool.name),
                "ownerReferences": [desired.owner(pool)],
            },
            "type": "Opaque",
            "data": {"key": base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()},
        }
        await applying.create(self._api, manifest)
        self._known.pop(pool.name, None)

    async def headers(self, pool: str) -> dict[str, str]:
        """What a call to a node of the pool carries; nothing while there is no key."""
        key = await self.get(pool)
        if key is None:
            return {}
        known = self._known[pool]
        if self._now_s() - known.token_at_s > _TOKEN_FRESH_S:
            expires_s = int(self._wall_s()) + _TOKEN_S
            claims = access.Claims(pool=pool, role="operator", who=self._instance, expires_s=expires_s)
            known.token, known.token_at_s = access.sign(key, claims), self._now_s()
        return {"Authorization": f"Bearer {known.token}"}

    def forget(self, pool: str) -> None:
        self._known.pop(pool, None)

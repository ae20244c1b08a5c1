"""dataset: declare a named dataset, which is a space of its own: quota, eviction policy, TTL. Idempotent.

A node is told for itself alone: who declares tells every node of the cluster.
"""

from __future__ import annotations

import msgspec

KIND = 11


class Request(msgspec.Struct, array_like=True, frozen=True):
    name: str
    url: str
    eviction: str
    quota_bytes: int | None
    ttl_s: float | None
    replicas: int | None = None
    endpoint: str | None = None
    region: str | None = None
    include: list[str] = []
    exclude: list[str] = []
    refresh_s: float | None = None


class Reply(msgspec.Struct, array_like=True, frozen=True):
    created: bool

"""dataset: declare a named dataset, which is a space of its own: quota, eviction policy, TTL. Idempotent."""

from __future__ import annotations

import msgspec

KIND = 11


class Request(msgspec.Struct, array_like=True, frozen=True):
    name: str
    url: str
    eviction: str
    quota_bytes: int | None
    ttl_s: float | None


class Reply(msgspec.Struct, array_like=True, frozen=True):
    created: bool

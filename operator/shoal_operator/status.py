"""Whether a status is to be written now: at most one patch of an object in some seconds, but what matters at once.

What matters: the first status, a condition that turned or has another reason, a phase, a run, a generation that was
seen. The rest is numbers, which may wait for each other; what is written then is the newest of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_operator import conditions
from shoal_operator.model import Manifest

PATCH_EVERY_S = 5.0


def to_patch(
    before: Mapping[str, Any], after: Manifest, patched_s: float | None, now_s: float
) -> tuple[Manifest | None, float | None]:
    """What to write now, else in how many seconds to look again; neither where nothing changed."""
    if _plain(before) == _plain(after):
        return None, None
    due_s = now_s if patched_s is None else patched_s + PATCH_EVERY_S
    # A clock that was set back must not silence a status for long.
    if due_s <= now_s or due_s > now_s + PATCH_EVERY_S or _matters(before, after):
        return after, None
    return None, due_s - now_s


def _plain(status: Mapping[str, Any]) -> dict[str, Any]:
    """The API server may keep conditions in another order."""
    return {**status, "conditions": conditions.by_type(status)}


def _matters(before: Mapping[str, Any], after: Manifest) -> bool:
    keys = ("phase", "run", "observedGeneration")
    return _turns(before) != _turns(after) or any(before.get(key) != after.get(key) for key in keys)


def _turns(status: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    return {kind: (found.get("status"), found.get("reason")) for kind, found in conditions.by_type(status).items()}

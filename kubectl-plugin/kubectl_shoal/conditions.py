"""Which conditions of an object say that somebody should look at it, and how that is said in a line. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_BAD_WHEN = {"Ready": "False", "Stalled": "True", "Degraded": "True", "CredentialsDenied": "True", "Failed": "True"}
_URGENT = ("CredentialsDenied", "Failed", "Stalled", "Degraded", "Ready")
"""Several conditions may tell of one reason: the most telling is shown."""


class Finding(NamedTuple):
    """A condition that is not as it should be."""

    type: str
    reason: str
    message: str
    since: str
    stalled: bool
    """Nothing will change before somebody does something."""


def by_type(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in found.get("status", {}).get("conditions", [])}


def status_of(found: dict[str, Any], kind: str) -> str:
    """True, False, Unknown; '-' where nobody has said anything."""
    return by_type(found).get(kind, {}).get("status", "-")


def findings(found: dict[str, Any]) -> list[Finding]:
    """One for each reason. An object that no operator has seen, or not since it was changed, is one of them too."""
    known = by_type(found)
    if not known:
        why = "no operator has looked at it yet; kubectl shoal doctor says whether one runs"
        return [Finding("Ready", "NotSeen", why, found["metadata"].get("creationTimestamp", ""), stalled=False)]
    seen = list(_bad(known))
    generation, observed = found["metadata"].get("generation"), found["status"].get("observedGeneration")
    if generation is not None and observed is not None and observed < generation:
        why = f"the operator has seen generation {observed} of it, not yet {generation}"
        seen.append(Finding("Ready", "NotSeen", why, "", stalled=False))
    return seen


def _bad(known: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    stalled = known.get("Stalled", {}).get("status") == "True"
    told: set[tuple[str, str]] = set()
    for kind in _URGENT:
        each = known.get(kind)
        if each is None or each["status"] != _BAD_WHEN[kind]:
            continue
        if kind == "Ready" and known.get("Complete", {}).get("status") == "False" and not stalled:
            continue  # a Preload on its way is not ready, and nothing is wrong with it
        said = each["reason"], each.get("message", "")
        if said not in told:
            told.add(said)
            yield Finding(kind, *said, each.get("lastTransitionTime", ""), stalled)

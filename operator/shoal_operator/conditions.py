"""Conditions as metav1 has them, and the events that tell of their changes.

Three of them are read by tools that know nothing of Shoal (kubectl wait, Argo CD, Flux; the rules are kstatus'). Ready
is True when the object is what its spec says, Reconciling while the operator or the nodes are still at work on it, and
Stalled when somebody has to do something first. One `Verdict` says all three, so that they cannot contradict each
other: what is stalled is not being reconciled. A check that finds nothing wrong says None, and the first verdict in a
chain of checks counts. Every condition is made anew from what is seen, so every one of them recovers by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from shoal_operator import moments
from shoal_operator.model import Event

MESSAGE_CHARACTERS_MAX = 1024
"""The API allows 32768; nobody reads so much."""


class Verdict(msgspec.Struct, frozen=True):
    """Where an object stands."""

    reason: str
    message: str
    ready: bool = False
    busy: bool = False
    """Something is being done, by the operator or by nodes, that will change this."""
    stalled: bool = False
    """Nothing will change this before somebody else did something."""


class Condition(msgspec.Struct, frozen=True):
    """One condition, before it is known since when."""

    type: str
    is_true: bool
    reason: str
    message: str = ""


def standing(verdict: Verdict) -> list[Condition]:
    """Ready, Reconciling and Stalled."""
    reason, message = verdict.reason, verdict.message
    is_busy = verdict.busy and not verdict.stalled
    return [
        Condition("Ready", verdict.ready, reason, message),
        Condition("Reconciling", True, reason, message) if is_busy else Condition("Reconciling", False, "Settled"),
        Condition("Stalled", True, reason, message) if verdict.stalled else Condition("Stalled", False, "NotStalled"),
    ]


def dated(
    wanted: Iterable[Condition], status: Mapping[str, Any], generation: int, now_s: float
) -> list[dict[str, object]]:
    """As they are written: lastTransitionTime is when the status last changed."""
    before = by_type(status)
    now = moments.shown(now_s)
    dated: list[dict[str, object]] = []
    for condition in wanted:
        was, value = before.get(condition.type, {}), "True" if condition.is_true else "False"
        since = was.get("lastTransitionTime") if was.get("status") == value else None
        dated.append({
            "type": condition.type,
            "status": value,
            "reason": condition.reason,
            "message": cut(condition.message),
            "observedGeneration": generation,
            "lastTransitionTime": since or now,
        })  # fmt: skip
    return dated


def changes(status: Mapping[str, Any], conditions: Iterable[Condition], stalled: bool) -> list[Event]:
    """An event for each change of Ready's status or reason, and for each other condition of ours that became True."""
    before = by_type(status)
    events: list[Event] = []
    for condition in conditions:
        was = before.get(condition.type, {})
        has_turned = was.get("status") != ("True" if condition.is_true else "False")
        if condition.type == "Ready":
            if has_turned or was.get("reason") != condition.reason:
                events.append(Event("Warning" if stalled else "Normal", condition.reason, cut(condition.message)))
        elif condition.type not in ("Reconciling", "Stalled") and condition.is_true and has_turned:
            kind = "Normal" if condition.type == "Complete" else "Warning"
            events.append(Event(kind, condition.reason, cut(condition.message)))
    # Two conditions may turn for one reason; that is one event.
    return list(dict.fromkeys(events))


def by_type(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The conditions of a status as found; what is none is left aside."""
    found = status.get("conditions")
    items = cast("list[object]", found) if isinstance(found, list) else []
    tables = [cast("Mapping[str, Any]", item) for item in items if isinstance(item, Mapping)]
    return {str(table.get("type")): table for table in tables}


def is_true(status: Mapping[str, Any], kind: str) -> bool:
    return by_type(status).get(kind, {}).get("status") == "True"


def cut(text: str, most: int = MESSAGE_CHARACTERS_MAX) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

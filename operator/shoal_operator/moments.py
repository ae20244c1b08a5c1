"""Times as Kubernetes writes them, and durations as people read them. Nobody here knows what time it is.

Moments are Unix seconds, UTC; `datetime` is used as a calendar only.
"""

from __future__ import annotations

from datetime import UTC, datetime

_STEPS = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def parse(text: object) -> float | None:
    """Unix seconds of an RFC 3339 time; None when it is none."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def shown(moment_s: float) -> str:
    """RFC 3339 in whole seconds, as metav1.Time."""
    return datetime.fromtimestamp(int(moment_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float) -> str:
    """For people, at most two units, as kubectl shows ages: "45s", "3m", "3m20s", "2h5m", "4d"."""
    left = max(round(seconds), 0)
    for place, (size, unit) in enumerate(_STEPS):
        if left >= size:
            count, rest = divmod(left, size)
            # Two units where the first says little, as kubectl does.
            if count < 10 and place + 1 < len(_STEPS):
                smaller, smaller_unit = _STEPS[place + 1]
                if rest // smaller:
                    return f"{count}{unit}{rest // smaller}{smaller_unit}"
            return f"{count}{unit}"
    return "0s"

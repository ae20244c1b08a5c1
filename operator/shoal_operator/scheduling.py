"""Which run of a preload is due: a run is one attempt to bring everything, and its name says for what it is.

The name is SPEC-TRIGGER-ATTEMPT: a digest of what is to be brought, a digest of why now (once; the minute of the
schedule; the manifest that the origin has), and a count. It is derived, not chosen: an operator that was restarted
arrives at the same one. The run and how it ended are in the Preload's status; there is no other memory.
    Once      one run, and another when what is to be brought changes
    Cron      one run for each time of the schedule; times that pass while a run is under way are made up for by one
    OnChange  one run for each manifest of the data set; a run that is under way gives way to it
A run that failed is tried again after RETRY_S, twice as long each time, at most RETRY_S_MAX: what is there already is
only looked at, so that costs little, and a preload whose origin was away for a night is complete in the morning.
"""

from __future__ import annotations

import msgspec

from shoal_operator import cron, moments, names
from shoal_operator.model import Preload
from shoal_operator.specs import PreloadSpec

RETRY_S, RETRY_S_MAX = 30.0, 600.0

ACTIVE = ("Listing", "Filling", "Verifying")
FINAL = ("Complete", "Failed")


class Due(msgspec.Struct, frozen=True):
    """What a preload is to do now."""

    run: str = ""
    """The run that counts; empty: none was due yet."""
    is_new: bool = False
    """It begins now."""
    is_over: bool = False
    """It ended before; what the status says of it holds."""
    next_s: float | None = None
    """The next time of its schedule."""
    retry_s: float | None = None
    """When what failed is tried again."""


def due(preload: Preload, spec: PreloadSpec, manifest: str, now_s: float) -> Due:
    """`manifest` is the data set's, as last scanned. ConfigError when the schedule is none."""
    status = preload.status
    wanted, why, next_s = _wanted(preload, spec, manifest, now_s)
    run, phase = str(status.get("run") or ""), status.get("phase")
    before = run.rpartition("-")[0]
    is_over = phase in FINAL
    # A run of the schedule is not cut off by the next one.
    goes_on = before == wanted or (spec.policy == "Cron" and not is_over and _same_spec(before, _digest(preload, spec)))
    if goes_on and phase == "Failed":
        again_s = _ended_s(preload, now_s) + retry_after_s(attempt(run))
        if now_s >= again_s:
            return Due(f"{before}-{attempt(run) + 1}", is_new=True, next_s=next_s)
        return Due(run, is_over=True, next_s=next_s, retry_s=again_s)
    if goes_on:
        return Due(run, is_over=is_over, next_s=next_s)
    if why:
        return Due(f"{wanted}-1", is_new=True, next_s=next_s)
    # Nothing is due yet; what an earlier spec or schedule did is history that still holds.
    return Due(run if is_over else "", is_over=is_over and bool(run), next_s=next_s)


def running(preload: Preload) -> str | None:
    """The run that nodes are to work on, by what the status says; None: none."""
    spec, run = preload.spec, str(preload.status.get("run") or "")
    if spec is None or preload.deleted_s is not None or spec.suspend or preload.status.get("phase") not in ACTIVE:
        return None
    return run if run and _same_spec(run, _digest(preload, spec)) else None


def task_id(preload: Preload, run: str) -> str:
    """In the pool state and in the nodes' reports."""
    return f"{preload.namespace}/{preload.name}/{run}"


def attempt(run: str) -> int:
    text = run.rpartition("-")[2]
    return int(text) if text.isdecimal() else 1


def retry_after_s(attempts: int) -> float:
    return min(RETRY_S * 2.0 ** min(attempts - 1, 10), RETRY_S_MAX)


def expires_s(preload: Preload, spec: PreloadSpec) -> float | None:
    """When it is to be deleted: only what runs once is ever finished."""
    is_final = preload.status.get("phase") in FINAL
    ended_s = moments.parse(preload.status.get("completionTime"))
    if spec.ttl_after_finished_s is None or spec.policy != "Once" or not is_final or ended_s is None:
        return None
    return ended_s + spec.ttl_after_finished_s


def _wanted(preload: Preload, spec: PreloadSpec, manifest: str, now_s: float) -> tuple[str, str, float | None]:
    """The name of what is due but for the attempt, why it is due (empty: it is not), and when the next will be."""
    next_s = None
    match spec.policy:
        case "Once":
            why = "once"
        case "OnChange":
            why = manifest
        case _:
            schedule = cron.parse(spec.schedule)
            last_s = cron.latest(schedule, preload.created_s, now_s)
            why = "" if last_s is None else moments.shown(last_s)
            next_s = cron.following(schedule, now_s)
    return f"{_digest(preload, spec)}-{names.digest(why)[:6]}", why, next_s


def _digest(preload: Preload, spec: PreloadSpec) -> str:
    # Not the bandwidth, nor whether it is suspended: those change how a run goes, not what it is for.
    return names.digest([preload.uid, spec.dataset, list(spec.paths), spec.verify, spec.policy])[:6]


def _same_spec(run: str, digest: str) -> bool:
    return run.startswith(f"{digest}-")


def _ended_s(preload: Preload, now_s: float) -> float:
    ended_s = moments.parse(preload.status.get("completionTime"))
    return now_s if ended_s is None else ended_s

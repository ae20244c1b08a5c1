"""Where a Preload stands: which run counts, how far it is, and whether it is complete.

Nodes work on a run by themselves; here their reports are added up. A run is complete only when every node that owns
something, in the view as it is now, says that it is done and that it has verified all that it owns, and when these
parts together are as much as the data set has, as many times as it is to be there. When they are not, although all say
so, nodes have listed the origin at different times: the next scan of the data set tells, and then the run begins again.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shoal_core import view
from shoal_core.errors import ConfigError
from shoal_operator import conditions, fallbacks, moments, quantities, reporting, scheduling, skew
from shoal_operator.conditions import Condition, Verdict
from shoal_operator.model import UNLISTED, DatasetReport, Manifest, PreloadMemory, PreloadObserved, PreloadReport
from shoal_operator.reporting import PreloadSums
from shoal_operator.specs import PreloadSpec

_MARK_EVERY_S = 5.0
_MARKS_MAX = 7
"""The rate is that of the last half minute."""
_PERCENT_MAX = 99
"""Until it is complete."""


class Progress(msgspec.Struct, frozen=True):
    """A run that is under way."""

    phase: str
    message: str
    sums: PreloadSums = PreloadSums()
    bytes_total: int = 0
    """All that is to be brought, copies counted each; 0: nobody knows yet."""


class Outcome(msgspec.Struct, frozen=True):
    """What is to be said of a preload."""

    verdict: Verdict
    phase: str
    due: scheduling.Due = scheduling.Due()
    progress: Progress | None = None
    """None: the numbers stay as they are, or there are none."""


def outcome(seen: PreloadObserved, version: str) -> Outcome:
    """Where it stands now."""
    preload, spec = seen.preload, seen.preload.spec
    if spec is None:
        return Outcome(skew.unusable(preload, version), "Pending")
    said = _decide(seen, spec)
    return msgspec.structs.replace(said, verdict=skew.partly(preload, version, said.verdict))


def _decide(seen: PreloadObserved, spec: PreloadSpec) -> Outcome:
    status, dataset = seen.preload.status, seen.dataset
    manifest = str(dataset.status.get("manifest") or "") if dataset is not None else ""
    try:
        due = scheduling.due(seen.preload, spec, manifest, seen.now_s)
    except ConfigError as error:
        return Outcome(Verdict("InvalidSchedule", f"spec.schedule: {error}", stalled=True), "Pending")
    if spec.suspend and not due.is_over:
        # A run that would be new is not begun; one that was under way goes on by the same name later.
        kept = msgspec.structs.replace(due, run=str(status.get("run") or "") if due.is_new else due.run, is_new=False)
        return Outcome(Verdict("Suspended", "spec.suspend is set"), "Suspended", kept)
    if due.is_over:
        return _ended(seen, due)
    if not due.run:
        when = f"the next run is at {moments.shown(due.next_s)}" if due.next_s else "nothing is due"
        return Outcome(Verdict("Scheduled", when), "Pending", due)
    waits = _dataset_not_ready(seen, spec)
    if waits is not None and due.is_new:
        if status.get("phase") == "Failed" and scheduling.attempt(due.run) > 1:
            return _ended(seen, scheduling.Due(str(status.get("run")), is_over=True, next_s=due.next_s))
        return Outcome(waits, "Pending", scheduling.Due(next_s=due.next_s))
    if due.is_new:
        return Outcome(
            Verdict("Listing", "the nodes are being told", busy=True), "Listing", due, Progress("Listing", "")
        )
    return _under_way(seen, spec, due)


def _ended(seen: PreloadObserved, due: scheduling.Due) -> Outcome:
    """What was said when it ended holds."""
    phase = str(seen.preload.status.get("phase"))
    was = conditions.by_type(seen.preload.status).get("Ready", {})
    reason, message = str(was.get("reason") or phase), str(was.get("message") or "")
    return Outcome(Verdict(reason, message, ready=phase == "Complete", stalled=phase == "Failed"), phase, due)


def _dataset_not_ready(seen: PreloadObserved, spec: PreloadSpec) -> Verdict | None:
    name, dataset = f"{seen.preload.namespace}/{spec.dataset}", seen.dataset
    if dataset is None or dataset.deleted_s is not None:
        there_is = "does not exist" if dataset is None else "is being deleted"
        return Verdict("DatasetNotFound", f"spec.dataset: Dataset {name} {there_is}", stalled=True)
    if not conditions.is_true(dataset.status, "Ready"):
        why = conditions.by_type(dataset.status).get("Ready", {}).get("reason") or "nothing is known of it yet"
        return Verdict("DatasetNotReady", f"Dataset {name} is not ready: {why}", busy=True)
    return None


def _under_way(seen: PreloadObserved, spec: PreloadSpec, due: scheduling.Due) -> Outcome:
    known = seen.view
    owners = [node for node in known.nodes if node.status == "ready" and node.capacity_bytes] if known else []
    if known is None or not owners:
        waits = Progress("Listing", "the pool has no node that owns anything")
        return Outcome(Verdict("PoolNotReady", waits.message, busy=True), waits.phase, due, waits)
    task = scheduling.task_id(seen.preload, due.run)
    heard = {
        node.id: report.preloads[task]
        for node in owners
        if (report := seen.reports.get(node.id)) is not None and task in report.preloads
    }
    sums = reporting.preload_sums(sorted(heard.items()))
    copies = _copies(seen, owners)
    progress = _progress(seen, spec, known, owners, heard, sums, copies)
    if progress.phase == "Failed":
        return Outcome(Verdict("Failed", progress.message, stalled=True), "Failed", due, progress)
    if progress.phase == "Complete":
        return Outcome(Verdict("Complete", progress.message, ready=True), "Complete", due, progress)
    return Outcome(Verdict(progress.phase, progress.message, busy=True), progress.phase, due, progress)


def _progress(
    seen: PreloadObserved, spec: PreloadSpec, known: view.View, owners: Sequence[view.Node],
    heard: dict[str, PreloadReport], sums: PreloadSums, copies: int,
) -> Progress:  # fmt: skip
    silent = [node.id for node in owners if node.id not in heard]
    if silent:
        message = f"waits for the first word of {fallbacks.listed(silent)}"
        return Progress(_furthest(heard), message, sums, _expected(seen, spec, copies) or 0)
    listed = all(report.state != "listing" for report in heard.values())
    total = sums.bytes_owned if listed else _expected(seen, spec, copies) or sums.bytes_owned
    busy = [name for name, report in heard.items() if report.state not in ("done", "failed")]
    late = [name for name, report in heard.items() if report.epoch != known.epoch]
    if busy or late:
        who = busy or late
        message = f"{len(who)} of {len(owners)} nodes at work: {fallbacks.listed(sorted(who))}"
        return Progress(_furthest(heard) if busy else "Filling", message, sums, total)
    failed = sorted(name for name, report in heard.items() if report.state == "failed" or report.objects_failed)
    if failed:
        said = "; ".join(sums.errors) or f"{sums.objects_failed} objects could not be brought"
        return Progress("Failed", f"on {fallbacks.listed(failed)}: {said}", sums, total)
    return _judged(seen, spec, heard, sums, copies)


def _judged(
    seen: PreloadObserved, spec: PreloadSpec, heard: dict[str, PreloadReport], sums: PreloadSums, copies: int
) -> Progress:
    """Every node says that it is done, for the view as it is."""
    got = {name: report.bytes_verified if spec.verify else report.bytes_done for name, report in heard.items()}
    short = sorted(name for name, report in heard.items() if got[name] != report.bytes_owned)
    total = sums.bytes_owned
    if short:
        name = short[0]
        message = f"{name} is done with {got[name]} of the {heard[name].bytes_owned} bytes that it owns"
        return Progress("Failed", message, sums, total)
    expected = _expected(seen, spec, copies)
    if total % copies == 0 and expected in (None, total):
        times = f", {copies} copies each" if copies > 1 else ""
        checked = "verified" if spec.verify else "there"
        message = f"{sums.objects_done} objects, {quantities.shown(total // copies)}, {checked}{times}"
        return Progress("Complete", message, sums, total)
    wanted = total - total % copies if expected is None else expected
    message = f"the nodes have listed {total} bytes, and the data set has {wanted}, copies counted"
    if expected is not None and not _was_scanned_since(seen):
        return Progress("Verifying", f"{message}; the next scan tells", sums, expected)
    return Progress("Failed", f"{message}; it has changed meanwhile", sums, wanted)


def _copies(seen: PreloadObserved, owners: Sequence[view.Node]) -> int:
    """How many nodes hold each block."""
    named = seen.dataset.spec.replicas if seen.dataset is not None and seen.dataset.spec is not None else None
    wanted = named or (seen.view.replica_count if seen.view is not None else 1)
    return min(wanted, len(owners))


def _expected(seen: PreloadObserved, spec: PreloadSpec, copies: int) -> int | None:
    """Bytes of the whole data set, copies counted; None: a part of it is wanted, or nobody knows."""
    scan, known = _scan(seen), seen.dataset.status if seen.dataset is not None else {}
    size = scan.bytes if scan is not None else known.get("bytes")
    is_unlisted = UNLISTED in (scan.manifest if scan is not None else "", known.get("manifest"))
    return size * copies if isinstance(size, int) and not spec.paths and not is_unlisted else None


def _was_scanned_since(seen: PreloadObserved) -> bool:
    """Whether the data set was scanned after the nodes began to list it."""
    scan, began_s = _scan(seen), moments.parse(seen.preload.status.get("startTime"))
    return scan is not None and began_s is not None and scan.scanned_at_s > began_s


def _scan(seen: PreloadObserved) -> DatasetReport | None:
    """The last scan of the data set, from the nodes: its status tells of it when it finds time to."""
    name = seen.dataset.name_on_nodes if seen.dataset is not None else ""
    said = [report.datasets[name] for report in seen.reports.values() if name in report.datasets]
    scans = [dataset for dataset in said if dataset.manifest]
    return max(scans, key=lambda dataset: dataset.scanned_at_s, default=None)


def _furthest(heard: dict[str, PreloadReport]) -> str:
    """The phase of the node that is least far, in a person's words."""
    states = {report.state for report in heard.values()}
    if not states or "listing" in states:
        return "Listing"
    return "Verifying" if states <= {"verifying", "done", "failed"} else "Filling"


# The status


def status(
    seen: PreloadObserved, said: Outcome, memory: PreloadMemory
) -> tuple[Manifest, list[Condition], PreloadMemory]:
    """The whole status, its conditions before they are dated, and what is to be remembered."""
    before, now = seen.preload.status, moments.shown(seen.now_s)
    is_complete, is_failed = said.phase == "Complete", said.phase == "Failed"
    current = [
        *conditions.standing(said.verdict),
        Condition("Complete", is_complete, said.verdict.reason, said.verdict.message),
        Condition("Failed", is_failed, said.verdict.reason, said.verdict.message if is_failed else ""),
    ]
    values: Manifest = {"phase": said.phase, "observedGeneration": seen.preload.generation}
    run, due = said.due.run, said.due
    if run:
        values["run"] = run
        values["startTime"] = now if due.is_new else before.get("startTime") or now
    if due.next_s is not None:
        values["nextScheduleTime"] = moments.shown(due.next_s)
    if said.phase in scheduling.FINAL and run:
        values["completionTime"] = (before.get("completionTime") if due.is_over else None) or now
    if said.progress is None:
        values |= _kept(seen) if run else {}
    else:
        memory = _marked(memory, run, said.progress.sums.bytes_done, seen.now_s)
        values |= _numbers(said.progress, memory)
    values["conditions"] = conditions.dated(current, before, seen.preload.generation, seen.now_s)
    return values, current, memory


def _kept(seen: PreloadObserved) -> Manifest:
    keys = (
        "objectsScanned", "objectsDone", "objectsFailed", "bytesScanned", "bytesDone", "bytesVerified", "bytesTotal",
        "progress", "errors",
    )  # fmt: skip
    return {key: seen.preload.status[key] for key in keys if key in seen.preload.status}


def _numbers(progress: Progress, memory: PreloadMemory) -> Manifest:
    sums, total = progress.sums, progress.bytes_total
    values: Manifest = {
        "objectsScanned": sums.objects_scanned,
        "objectsDone": sums.objects_done,
        "objectsFailed": sums.objects_failed,
        "bytesScanned": sums.bytes_scanned,
        "bytesDone": sums.bytes_done,
        "bytesVerified": sums.bytes_verified,
        "bytesTotal": total,
        "errors": list(sums.errors),
    }
    if progress.phase == "Complete":
        return {**values, "progress": "100%"}
    share = min(sums.bytes_done * 100 // total, _PERCENT_MAX) if total else 0
    values["progress"] = f"{share}%"
    rate = _rate(memory)
    if progress.phase != "Failed" and rate > 0:
        values["rate"] = f"{quantities.shown(int(rate))}/s"
        if total > sums.bytes_done:
            values["eta"] = moments.duration((total - sums.bytes_done) / rate)
    return values


def _marked(memory: PreloadMemory, run: str, bytes_done: int, now_s: float) -> PreloadMemory:
    marks = memory.marks if memory.run == run else ()
    if marks and (marks[-1][0] > now_s or bytes_done < marks[-1][1]):
        marks = ()  # a clock that was set back, or nodes that began again
    if marks and now_s - marks[-1][0] < _MARK_EVERY_S:
        return PreloadMemory(run, marks)
    return PreloadMemory(run, (*marks, (now_s, bytes_done))[-_MARKS_MAX:])


def _rate(memory: PreloadMemory) -> float:
    """Bytes a second, between the first mark and the last."""
    if len(memory.marks) < 2:
        return 0.0
    (first_s, first), (last_s, last) = memory.marks[0], memory.marks[-1]
    return (last - first) / (last_s - first_s)

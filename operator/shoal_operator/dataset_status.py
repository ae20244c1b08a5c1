"""Where a Dataset stands: the chain of checks that its Ready condition is, and the numbers people see.

A data set is Ready when its pool was told of it and one node has gone through the origin without a complaint, whether
anything is cached or not. What went wrong is told with what is to be done about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shoal_operator import conditions, moments, quantities, skew
from shoal_operator.conditions import Condition, Verdict
from shoal_operator.model import UNLISTED, DatasetObserved, DatasetReport, Manifest
from shoal_operator.specs import DatasetSpec

_ORIGIN_ERRORS = ("SecretMissing", "CredentialsRejected", "OriginUnreachable", "NotFound", "BadSource")
SCAN_TIME_EVERY_S = 600.0
_RETRIED = ("OriginUnreachable",)
"""Comes right by itself more often than by somebody's doing."""


def verdict(seen: DatasetObserved) -> Verdict:
    """The first check that has something to say."""
    dataset, version = seen.dataset, seen.settings.version
    spec = dataset.spec
    if spec is None:
        return skew.unusable(dataset, version)
    checks: tuple[Callable[[DatasetObserved, DatasetSpec], Verdict | None], ...] = (
        _deletion, _no_pool, _denied, _undeclared, _origin_error, _unscanned, _version_changed,
    )  # fmt: skip
    found = next((said for check in checks if (said := check(seen, spec)) is not None), None)
    return skew.partly(dataset, version, found or Verdict("Ready", _what_is_there(seen), ready=True))


def status(seen: DatasetObserved, said: Verdict) -> tuple[Manifest, list[Condition]]:
    """The whole status, and its conditions before they are dated."""
    dataset = seen.dataset
    is_denied = said.reason == "CredentialsDenied"
    current = [
        *conditions.standing(said),
        Condition("CredentialsDenied", is_denied, said.reason if is_denied else "NotDenied", said.message * is_denied),
    ]
    values: Manifest = {
        **_numbers(seen),
        "observedGeneration": dataset.generation,
        "conditions": conditions.dated(current, dataset.status, dataset.generation, seen.now_s),
    }
    return values, current


# Checks


def _deletion(seen: DatasetObserved, _: DatasetSpec) -> Verdict | None:
    if seen.dataset.deleted_s is None:
        return None
    return Verdict("Deleting", "waits until the nodes have dropped it", busy=True)


def _no_pool(seen: DatasetObserved, spec: DatasetSpec) -> Verdict | None:
    if seen.pool is not None and seen.pool.deleted_s is None:
        return None
    there_is = "is being deleted" if seen.pool is not None else "does not exist"
    return Verdict("PoolNotFound", f"spec.pool: CachePool {spec.pool} {there_is}", stalled=True)


def _denied(seen: DatasetObserved, spec: DatasetSpec) -> Verdict | None:
    secret, dataset = spec.source.secret_ref, seen.dataset
    nodes_say = seen.totals.error_code == "CredentialsDenied"
    if secret is None or not (seen.secret_allowed is False or nodes_say):
        return None
    if seen.secret_allowed:  # granted since: the nodes will find out
        return Verdict("Scanning", "access to the secret was granted, and the nodes try again", busy=True)
    command = f"kubectl shoal grant dataset {dataset.name} -n {dataset.namespace} | kubectl apply -f -"
    message = f"pool {spec.pool} may not read secret {secret.name}; to allow that and nothing else: {command}"
    return Verdict("CredentialsDenied", message, stalled=True)


def _undeclared(seen: DatasetObserved, spec: DatasetSpec) -> Verdict | None:
    if seen.declared:
        return None
    return Verdict("Declaring", f"pool {spec.pool} is being told of it", busy=True)


def _origin_error(seen: DatasetObserved, spec: DatasetSpec) -> Verdict | None:
    code = seen.totals.error_code
    is_current = seen.totals.error_generation in (0, seen.dataset.generation)
    if not code or code == "CredentialsDenied" or not is_current:
        return None
    source = spec.source
    secret = source.secret_ref.name if source.secret_ref is not None else ""
    where = f"{source.uri} at {source.endpoint}" if source.endpoint else source.uri
    hints = {
        "SecretMissing": f"there is no usable secret {secret} in namespace {seen.dataset.namespace}",
        "CredentialsRejected": f"{where} refuses " + (f"what secret {secret} holds" if secret else "to be read so"),
        "OriginUnreachable": f"{where} does not answer; what is cached is still served",
        "NotFound": f"there is nothing at {where}",
        "BadSource": f"{where} cannot be read",
    }
    message = ": ".join(part for part in (hints.get(code, where), seen.totals.error_message) if part)
    reason = code if code in _ORIGIN_ERRORS else "OriginError"
    is_retried = reason in _RETRIED or reason == "OriginError"
    return Verdict(reason, message, busy=is_retried, stalled=not is_retried)


def _unscanned(seen: DatasetObserved, spec: DatasetSpec) -> Verdict | None:
    if _scan(seen) is not None or _was_scanned_before(seen):
        return None
    if not seen.totals.nodes:
        return Verdict("Scanning", f"no node of pool {spec.pool} has spoken of it yet", busy=True)
    return Verdict("Scanning", f"{spec.source.uri} is being listed", busy=True)


def _version_changed(seen: DatasetObserved, spec: DatasetSpec) -> Verdict | None:
    scan = _scan(seen)
    if spec.version.policy != "Pinned" or scan is None:
        return None
    pinned = spec.version.manifest or _pinned_before(seen)
    if not pinned or pinned == scan.manifest:
        return None
    message = (
        f"{spec.source.uri} is not what was pinned: manifest {scan.manifest}, not {pinned}; what changed there cannot "
        "be read as it was. Put it back, or set spec.version.manifest"
    )
    return Verdict("VersionChanged", message, stalled=True)


# Parts


def _scan(seen: DatasetObserved) -> DatasetReport | None:
    """The last scan of what the spec says now."""
    scan = seen.totals.scan
    is_current = scan.generation in (0, seen.dataset.generation)
    return scan if scan.manifest and is_current else None


def _was_scanned_before(seen: DatasetObserved) -> bool:
    """This spec was found good before, and the nodes have not answered a new operator yet."""
    status, generation = seen.dataset.status, seen.dataset.generation
    is_same = status.get("observedGeneration") == generation and bool(status.get("manifest"))
    return is_same and not seen.totals.nodes and conditions.is_true(status, "Ready")


def _pinned_before(seen: DatasetObserved) -> str:
    """The manifest that was seen first, where the spec names none. A spec that was changed pins anew."""
    status = seen.dataset.status
    is_same = status.get("observedGeneration") == seen.dataset.generation
    return str(status.get("manifest") or "") if is_same else ""


def _numbers(seen: DatasetObserved) -> Manifest:
    before, scan, totals = seen.dataset.status, _scan(seen), seen.totals
    keys = ("objects", "bytes", "size", "manifest", "lastScanTime", "cachedBytes", "cachedPercent", "hitRatio")
    kept: Manifest = {key: before[key] for key in keys if key in before}
    if before.get("observedGeneration") != seen.dataset.generation:
        kept.pop("manifest", None)
    if scan is not None:
        kept |= {"objects": scan.objects, "bytes": scan.bytes, "size": quantities.shown(scan.bytes)}
        kept |= _scan_time(scan, before)
        version = seen.dataset.spec.version if seen.dataset.spec is not None else None
        pins_first = version is not None and version.policy == "Pinned" and not version.manifest
        kept["manifest"] = (pins_first and _pinned_before(seen)) or scan.manifest
    if totals.nodes:
        kept |= {"cachedBytes": totals.cached_bytes, "cachedPercent": _cached_percent(seen, kept.get("bytes"))}
        ratio = quantities.percent(totals.hits, totals.hits + totals.misses, 1)
        kept |= {"hitRatio": ratio} if ratio else {}
    return {key: value for key, value in kept.items() if value != ""}


def _scan_time(scan: DatasetReport, before: Mapping[str, Any]) -> Manifest:
    """A scan that found the same is not worth a patch each minute."""
    known_s = moments.parse(before.get("lastScanTime"))
    is_same = before.get("manifest") == scan.manifest and known_s is not None
    is_news = known_s is None or not is_same or scan.scanned_at_s - known_s >= SCAN_TIME_EVERY_S
    return {"lastScanTime": moments.shown(scan.scanned_at_s)} if is_news and scan.scanned_at_s else {}


def _cached_percent(seen: DatasetObserved, size_bytes: Any) -> str:
    """Of all copies that there are to be."""
    spec = seen.dataset.spec
    wanted = spec.replicas if spec is not None else None
    if wanted is None:
        wanted = seen.pool.spec.replicas if seen.pool is not None and seen.pool.spec is not None else 1
    copies = min(wanted, max(len(seen.totals.nodes), 1))
    return quantities.percent(seen.totals.cached_bytes, size_bytes * copies) if isinstance(size_bytes, int) else ""


def _what_is_there(seen: DatasetObserved) -> str:
    scan = _scan(seen)
    if scan is None:
        return conditions.by_type(seen.dataset.status)["Ready"].get("message", "")
    if scan.manifest == UNLISTED:
        return "its origin gives no listing; objects are read by name"
    objects = "1 object" if scan.objects == 1 else f"{scan.objects} objects"
    return f"{objects}, {quantities.shown(scan.bytes)}"

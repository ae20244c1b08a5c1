"""What is said where the spec and this operator are not of one version. It is said, and everything else goes on."""

from __future__ import annotations

from shoal_operator.conditions import Verdict
from shoal_operator.model import Resource

_FIELDS_NAMED = 5


def unusable(resource: Resource, version: str) -> Verdict:
    """The spec means nothing to this operator."""
    hint = f"; operator {version} does not know it, a newer one may" if version else ""
    return Verdict("UnsupportedSpec", f"{resource.error}{hint}", stalled=True)


def partly(resource: Resource, version: str, verdict: Verdict) -> Verdict:
    """The verdict, which also says which fields were left aside."""
    if not resource.unknown:
        return verdict
    shown = ", ".join(resource.unknown[:_FIELDS_NAMED])
    more = f" and {len(resource.unknown) - _FIELDS_NAMED} more" if len(resource.unknown) > _FIELDS_NAMED else ""
    said = f"not known to operator {version or 'of this version'} and left aside: {shown}{more}"
    message = f"{verdict.message}; {said}" if verdict.message else said
    reason = "UnsupportedField" if verdict.ready else verdict.reason
    return Verdict(reason, message, ready=verdict.ready, busy=verdict.busy, stalled=True)

"""Writing to the cluster: one function for each way in which the operator changes an object.

Server-side apply, with force, for what the operator owns as a whole or in part; a merge patch with the resource version
for finalizers, which others may hold too; replace with the resource version for the pool state, so that of two writers
one fails; deletion of exactly the object that was meant. What is gone already counts as done. Answers are given back,
so that the store knows at once what a watch will say later.
"""

from __future__ import annotations

from typing import Any

from shoal_operator.api import APPLY, MERGE, Api, ApiError
from shoal_operator.kinds import KINDS
from shoal_operator.model import Manifest
from shoal_operator.names import FIELD_MANAGER

_APPLYING = {"fieldManager": FIELD_MANAGER, "force": "true"}
_MANAGED = {"fieldManager": FIELD_MANAGER}


def _place(manifest: Manifest) -> tuple[str, str]:
    metadata = manifest["metadata"]
    return str(metadata.get("namespace") or ""), str(metadata["name"])


async def apply(api: Api, manifest: Manifest) -> Manifest:
    """The object is as `manifest` says, in all that it says."""
    path = KINDS[manifest["kind"]].path(*_place(manifest))
    return await api.json("PATCH", path, body=manifest, content_type=APPLY, query=_APPLYING)


async def apply_status(api: Api, kind: str, namespace: str, name: str, status: Manifest) -> Manifest | None:
    """The object's whole status; None where the object is gone."""
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    body = {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata, "status": status}
    path = KINDS[kind].path(namespace, name, "status")
    return await _unless_gone(api, "PATCH", path, body=body, content_type=APPLY, query=_APPLYING)


async def set_finalizers(
    api: Api, kind: str, namespace: str, name: str, finalizers: tuple[str, ...], resource_version: str
) -> Manifest | None:
    """Exactly these, if the object is still as it was seen; ApiError.conflict otherwise, None where it is gone."""
    body = {"metadata": {"finalizers": list(finalizers), "resourceVersion": resource_version}}
    path = KINDS[kind].path(namespace, name)
    return await _unless_gone(api, "PATCH", path, body=body, content_type=MERGE, query=_MANAGED)


async def write_state(api: Api, manifest: Manifest) -> Manifest:
    """Replace the pool state if it is still the one that was read, or create it; ApiError.conflict otherwise."""
    kind = KINDS["ConfigMap"]
    namespace, name = _place(manifest)
    if "resourceVersion" in manifest["metadata"]:
        return await api.json("PUT", kind.path(namespace, name), body=manifest, query=_MANAGED)
    return await api.json("POST", kind.path(namespace), body=manifest, query=_MANAGED)


async def create(api: Api, manifest: Manifest) -> Manifest | None:
    """None where there is one of that name already."""
    namespace, _ = _place(manifest)
    try:
        return await api.json("POST", KINDS[manifest["kind"]].path(namespace), body=manifest, query=_MANAGED)
    except ApiError as error:
        if error.conflict:
            return None
        raise


async def delete(api: Api, kind: str, namespace: str, name: str, uid: str) -> None:
    """That very object: one of the same name that came after it stays."""
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
    try:
        await _unless_gone(api, "DELETE", KINDS[kind].path(namespace, name), body=body)
    except ApiError as error:
        if not error.conflict:
            raise


async def _unless_gone(api: Api, method: str, path: str, **options: Any) -> Manifest | None:
    try:
        return await api.json(method, path, **options)
    except ApiError as error:
        if error.not_found:
            return None
        raise

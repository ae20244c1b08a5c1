"""Whether the cluster's CRDs are new enough for this operator: asked before anything is watched.

Helm does not upgrade CRDs that are kept, and somebody may install them by hand; so operator and CRDs can be of two
versions. Each CRD says by an annotation which version of the schema it holds, a number that rises when the operator
needs a field that was not there. With older CRDs, or none, the operator waits and says so; newer ones are fine, what
they hold and we do not know is said in each object's status.
"""

from __future__ import annotations

import asyncio
import logging

from shoal_operator.api import Api, ApiError
from shoal_operator.kinds import KINDS
from shoal_operator.names import GROUP

_LOG = logging.getLogger("shoal.operator.schema")

NEEDED = 1
ANNOTATION = f"{GROUP}/schema-version"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_LOOK_EVERY_S = 2.0


async def complaint(api: Api) -> str:
    """What is wrong with the CRDs, and what to do about it; empty: nothing. ApiError when nobody answers."""
    for kind in ("CachePool", "Dataset", "Preload"):
        name = f"{KINDS[kind].plural}.{GROUP}"
        try:
            found = await api.json("GET", f"{_CRDS}/{name}")
        except ApiError as error:
            if error.not_found:
                return f"SchemaMissing: there is no CRD {name}; apply the CRDs of this version"
            raise
        text = str(found["metadata"].get("annotations", {}).get(ANNOTATION, "0"))
        version = int(text) if text.isdecimal() else 0
        if version < NEEDED:
            return f"SchemaTooOld: CRD {name} has schema {version}, this operator needs {NEEDED}; apply its CRDs"
        established = {item["type"]: item["status"] for item in found.get("status", {}).get("conditions", [])}
        if established.get("Established") != "True":
            return f"SchemaMissing: CRD {name} is not established yet"
    return ""


class Schema:
    """`wrong`: why nothing is done yet; empty once the CRDs are as they must be."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.wrong = "SchemaMissing: not looked yet"

    async def wait(self) -> None:
        """Returns when the CRDs will do."""
        said = ""
        while True:
            try:
                self.wrong = await complaint(self._api)
            except ApiError as error:
                self.wrong = f"the CRDs cannot be read: {error}"
            if not self.wrong:
                return
            if self.wrong != said:
                said = self.wrong
                _LOG.error("%s", said)
            await asyncio.sleep(_LOOK_EVERY_S)

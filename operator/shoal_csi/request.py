"""What a pod asks for: kubelet's publish request, checked and put into words of ours. Pure.

The attributes of a volume come from two sides: `dataset` from whoever wrote the pod, everything that begins with
csi.storage.k8s.io/ from kubelet, which overwrites what a pod may have put there. An attribute that we do not know is
refused by name: a misspelt one would otherwise be ignored in silence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from shoal_core import names
from shoal_csi.refusals import Refused

AUDIENCE = "shoal.dev"
"""Whom the pod's token is for; CSIDriver.spec.tokenRequests names it."""
DATASETS_MAX = 32
"""Data sets of one volume: each is one review and one read at each publish."""

_KUBELET = "csi.storage.k8s.io/"
_TOKENS = _KUBELET + "serviceAccount.tokens"


class Pod(msgspec.Struct, frozen=True):
    """Whose volume it is, as kubelet says."""

    namespace: str
    name: str
    uid: str
    service_account: str

    @property
    def who(self) -> str:
        """As nodes and logs call it."""
        return f"{self.namespace}/{self.name}"

    @property
    def user(self) -> str:
        """As Kubernetes calls the account it runs under."""
        return f"system:serviceaccount:{self.namespace}:{self.service_account}"


class DatasetName(msgspec.Struct, frozen=True, order=True):
    """A Dataset object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def on_nodes(self) -> str:
        """What cache nodes call it."""
        return f"{self.namespace}.{self.name}"


class Request(msgspec.Struct, frozen=True):
    """One volume of one pod."""

    volume_id: str
    target_path: str
    pod: Pod
    datasets: tuple[DatasetName, ...]
    token: str
    """The pod's own, for the audience shoal.dev. Never logged."""

    def __repr__(self) -> str:
        return f"Request({self.volume_id}, {self.pod.who}, {', '.join(map(str, self.datasets))})"

    def names(self) -> dict[str, DatasetName]:
        """The data sets by the name they have in the volume: their own, or, where two share it, with the namespace."""
        sharing = Counter(dataset.name for dataset in self.datasets)
        return {dataset.name if sharing[dataset.name] == 1 else dataset.on_nodes: dataset for dataset in self.datasets}


def parse(volume_id: str, target_path: str, context: Mapping[str, str], secrets: Mapping[str, str]) -> Request:
    """The request; Refused names the attribute that is wrong."""
    if context.get(_KUBELET + "ephemeral") != "true":
        raise Refused(
            "INVALID_ARGUMENT",
            "there are inline ephemeral volumes only: write `csi: {driver: csi.shoal.dev, ...}` into the pod's volumes,"
            " not a PersistentVolume",
        )
    for attribute in context:
        if attribute != "dataset" and not attribute.startswith(_KUBELET):
            raise Refused("INVALID_ARGUMENT", f"volumeAttributes.{attribute}: unknown; the one there is: dataset")
    pod = Pod(
        namespace=_of_pod(context, "pod.namespace"),
        name=_of_pod(context, "pod.name"),
        uid=_of_pod(context, "pod.uid"),
        service_account=_of_pod(context, "serviceAccount.name"),
    )
    datasets = _datasets(context.get("dataset", ""), pod.namespace)
    # Where CSIDriver.spec.serviceAccountTokenInSecrets is set, kubelet hands the tokens over beside the attributes.
    return Request(volume_id, target_path, pod, datasets, _token(context.get(_TOKENS) or secrets.get(_TOKENS, "")))


def _of_pod(context: Mapping[str, str], name: str) -> str:
    value = context.get(_KUBELET + name, "")
    if not value:
        raise Refused("INVALID_ARGUMENT", f"{_KUBELET}{name}: missing; CSIDriver csi.shoal.dev needs podInfoOnMount")
    return value


def _datasets(text: str, namespace: str) -> tuple[DatasetName, ...]:
    if not text.strip():
        raise Refused(
            "INVALID_ARGUMENT", "volumeAttributes.dataset: missing; it is [namespace/]name, or several with commas"
        )
    found: list[DatasetName] = []
    for item in text.split(","):
        given_namespace, slash, name = item.strip().rpartition("/")
        dataset = DatasetName(given_namespace if slash else namespace, name)
        if not (names.is_label(dataset.namespace) and names.is_label(dataset.name)):
            raise Refused(
                "INVALID_ARGUMENT",
                f"volumeAttributes.dataset: {item.strip()!r} is not [namespace/]name, each of a-z, 0-9 and inner -",
            )
        if dataset in found:
            raise Refused("INVALID_ARGUMENT", f"volumeAttributes.dataset: {dataset} is there twice")
        found.append(dataset)
    if len(found) > DATASETS_MAX:
        raise Refused(
            "INVALID_ARGUMENT", f"volumeAttributes.dataset: {len(found)} data sets, {DATASETS_MAX} are allowed"
        )
    return tuple(found)


def _token(text: str) -> str:
    try:
        tokens: Any = json.loads(text) if text else {}
        token = tokens[AUDIENCE]["token"]
    except (ValueError, KeyError, TypeError):
        token = None
    if not isinstance(token, str) or not token:
        raise Refused(
            "FAILED_PRECONDITION",
            f"kubelet gave no token of the pod for the audience {AUDIENCE}: CSIDriver csi.shoal.dev needs tokenRequests"
            f" with the audience {AUDIENCE}",
        )
    return token

"""Whether a pod may have its volume, and the account of those that may not.

Two questions to the API server, both asked at each publish: whose is the token that kubelet handed over, and may that
account `use` each data set. The token must be bound to the very pod that kubelet named, so that neither side is taken
at its word. A data set is asked about before anything of it is read: who may not use it does not learn whether it
exists. Each refusal is a line in the driver's log and an event beside the pod.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import threading

from shoal_csi import DRIVER_NAME
from shoal_csi.cluster import Cluster
from shoal_csi.refusals import Refused
from shoal_csi.request import Pod, Request

_COUNTED_MAX = 4096

audit = logging.getLogger("shoal.csi.audit")


class Permission:
    """Asks, and keeps account."""

    def __init__(self, cluster: Cluster, node_id: str) -> None:
        self._cluster = cluster
        self._node_id = node_id
        self._lock = threading.Lock()
        self._denials: dict[str, int] = {}

    def check(self, request: Request) -> None:
        """Returns when the pod may use all its data sets; a Refused that says who may not use what, otherwise."""
        pod = request.pod
        user = self._cluster.review_token(request.token)
        if user.name != pod.user or user.pod_uid != pod.uid:
            raise Refused(
                "UNAUTHENTICATED",
                f"the token belongs to {user.name} in the pod with uid {user.pod_uid or '(none)'}, the volume to "
                f"{pod.user} in {pod.who} with uid {pod.uid}",
            )
        for dataset in request.datasets:
            if not self._cluster.may_use(user, dataset):
                raise Refused(
                    "PERMISSION_DENIED",
                    f"{user.name} may not use the Dataset {dataset}; who owns it can allow it: kubectl shoal grant use "
                    f"{dataset.name} -n {dataset.namespace} --to {pod.namespace}/{pod.service_account} | kubectl apply "
                    "-f -",
                )

    def allowed(self, request: Request) -> None:
        """Account of a volume that was published for the first time."""
        with self._lock:
            self._denials.pop(request.volume_id, None)
        audit.info("allowed %s", self._line(request))

    def denied(self, request: Request, refused: Refused) -> None:
        """Account of a refusal, for the cluster's and for the pod's owner."""
        with self._lock:
            if len(self._denials) >= _COUNTED_MAX:
                self._denials.clear()
            count = self._denials[request.volume_id] = self._denials.get(request.volume_id, 0) + 1
        audit.warning("denied %s", self._line(request, code=refused.code, reason=str(refused), count=count))
        pod = request.pod
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._cluster.record_event(
            pod.namespace,
            {
                "apiVersion": "v1",
                "kind": "Event",
                # One event per pod and driver that counts, as the API server's own recorder would have it.
                "metadata": {"name": _event_name(pod), "namespace": pod.namespace},
                "involvedObject": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "namespace": pod.namespace,
                    "name": pod.name,
                    "uid": pod.uid,
                },
                "type": "Warning",
                "reason": "DatasetDenied",
                "message": str(refused)[:1024],
                "source": {"component": DRIVER_NAME, "host": self._node_id},
                "count": count,
                "firstTimestamp": now,
                "lastTimestamp": now,
            },
        )

    def forget(self, volume_id: str) -> None:
        """The volume is gone."""
        with self._lock:
            self._denials.pop(volume_id, None)

    def _line(self, request: Request, **more: object) -> str:
        """What an account says about a volume: one line of JSON, so that no name can forge another."""
        return json.dumps(
            {
                "pod": request.pod.who,
                "pod_uid": request.pod.uid,
                "user": request.pod.user,
                "datasets": [str(dataset) for dataset in request.datasets],
                "node": self._node_id,
                "volume": request.volume_id,
                **more,
            }
        )


def _event_name(pod: Pod) -> str:
    """The same for a pod and this driver each time, and a name that an object may have."""
    return f"{pod.name[:200].rstrip('-.')}.{DRIVER_NAME}.{pod.uid[:8].rstrip('-')}"

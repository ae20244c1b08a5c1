"""The life of a volume: published, published again about once a minute, unpublished; and what is swept up.

The first publish makes the directories, mounts them into the pod and tells the node, in that order. Each further one
asks for the permission anew, writes a fresh token and fresh addresses, and mounts only what is not mounted: it also
repairs what a restart of this driver left half done. A pod that has lost its permission keeps its mount, but the node
is told that the volume has no data sets; when it is allowed again, the next publish gives them back.
An API server that does not answer changes nothing: what is mounted goes on until its token ends.
Two calls for one volume never run at once: the second is told so, and kubelet comes again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shoal_core import access, names
from shoal_core.view import View
from shoal_csi import contents, folders, mounts
from shoal_csi.cluster import Cluster
from shoal_csi.contents import Place
from shoal_csi.folders import Folders, Record, Volume
from shoal_csi.permission import Permission
from shoal_csi.refusals import Refused
from shoal_csi.request import DatasetName, Request

_SOCKET_LOOK_S = 0.02

log = logging.getLogger("shoal.csi")


class Publisher:
    """All volumes of this machine. Safe for threads."""

    def __init__(
        self,
        cluster: Cluster,
        root: Path,
        place: Place,
        socket_wait_s: float,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._folders = Folders(root)
        self._place = place
        self._permission = Permission(cluster, place.node_id)
        self._socket_wait_s = socket_wait_s
        self._now_s = now_s
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def publish(self, request: Request) -> None:
        """The volume is there, with what it may hold now."""
        with self._alone(folders.short(request.volume_id)):
            known = self._folders.find(request.volume_id)
            if known is not None and known.record.target_path != request.target_path:
                raise Refused(
                    "FAILED_PRECONDITION",
                    f"the volume is published already, at {known.record.target_path}; a volume has one pod",
                )
            try:
                self._permission.check(request)
            except Refused as refused:
                if refused.is_denial:
                    self._permission.denied(request, refused)
                    if known is not None:
                        self._withdraw(known)
                raise
            self._give(request, known)

    def unpublish(self, volume_id: str, target_path: str) -> None:
        """Nothing of the volume is left; also when there was none."""
        with self._alone(folders.short(volume_id)):
            known = self._folders.find(volume_id)
            if known is not None:
                # The node's door closes before the mount goes.
                (known.folder / "access.json").unlink(missing_ok=True)
            mounts.remove(target_path)
            if known is not None:
                if known.record.target_path != target_path:
                    mounts.remove(known.record.target_path)
                self._folders.remove(known.folder)
                log.info("volume %s of %s: gone", volume_id, known.record.pod.who)
            self._permission.forget(volume_id)

    def sweep(self) -> int:
        """Remove the directories of volumes that nobody will unpublish any more; how many those were.

        kubelet unpublishes what it published, unless its own records were lost, or this driver ended in the middle. A
        volume counts as left behind when its target is gone from kubelet's directory, and that directory can be seen.
        """
        count = 0
        for folder in self._folders.all():
            with contextlib.suppress(Refused), self._alone(folder.name):
                volume = self._folders.volume(folder)
                if volume is None or _left_behind(Path(volume.record.target_path)):
                    self._folders.remove(folder)
                    count += 1
                    log.info("%s: left behind, removed", folder)
        return count

    def _give(self, request: Request, known: Volume | None) -> None:
        """Write what the volume holds, and mount it where it is not mounted yet."""
        urls, pool = self._sources(request)
        if known is not None and known.pool != pool:
            raise Refused(
                "FAILED_PRECONDITION",
                f"the data sets moved from the pool {known.pool} to {pool}; a new pod finds them there",
            )
        view = self._cluster.pool_view(pool)
        if known is None and not view.nodes:
            # A pool that was just made: the pod waits for its first node instead of failing before there is one. A pool
            # that had nodes and lost them stops no pod.
            raise Refused("UNAVAILABLE", f"CachePool {pool} has no node yet; kubectl get cachepool {pool} says why")
        claims = contents.claims(request, pool, self._now_s())
        token = access.sign(self._cluster.pool_key(pool), claims)
        client = contents.client(request, urls, view, self._place)
        volume = known or self._folders.make(pool, Record(request.volume_id, request.target_path, request.pod))
        try:
            mounts.show(volume.mount, request.target_path)
            volume.write(client, token, contents.access(request))
        except BaseException:
            if known is None:
                mounts.remove(request.target_path)
                self._folders.remove(volume.folder)
            raise
        if known is None:
            self._permission.allowed(request)
            self._await_socket(volume, view)

    def _sources(self, request: Request) -> tuple[dict[DatasetName, str], str]:
        """Where the data sets come from, by name, and the one pool that holds them."""
        urls: dict[DatasetName, str] = {}
        pools: dict[str, DatasetName] = {}
        for dataset in request.datasets:
            spec = self._cluster.dataset(dataset)
            pool = spec.get("pool")
            url = spec.get("source", {}).get("uri")
            # The pool's name becomes part of a path, and what a tenant wrote is not taken on trust.
            if not (isinstance(pool, str) and names.is_label(pool) and isinstance(url, str) and url):
                raise Refused(
                    "FAILED_PRECONDITION",
                    f"Dataset {dataset}: spec.pool and spec.source.uri are needed; are its CRD and this driver of one "
                    "version?",
                )
            urls[dataset] = url
            pools.setdefault(pool, dataset)
        if len(pools) > 1:
            places = ", ".join(f"{dataset} in {pool}" for pool, dataset in pools.items())
            raise Refused(
                "INVALID_ARGUMENT",
                f"volumeAttributes.dataset: one volume has data sets of one pool, these lie in several: {places}",
            )
        return urls, next(iter(pools))

    def _withdraw(self, volume: Volume) -> None:
        """The volume has no data sets any more; the token too says so, where it can be signed."""
        pod = volume.record.pod
        try:
            claims = contents.claims_to_nothing(pod, volume.pool, self._now_s())
            token = access.sign(self._cluster.pool_key(volume.pool), claims)
        except Refused:
            token = ""
        volume.withdraw(token, contents.access_to_nothing(pod))

    def _await_socket(self, volume: Volume, view: View) -> None:
        """Give the node beside us time to open its door: a client that starts before would settle for TCP."""
        position = view.position(self._place.node_id)
        if position is None or view.nodes[position].status != "ready":
            return
        end_s = time.monotonic() + self._socket_wait_s
        while not volume.socket.exists() and time.monotonic() < end_s:
            time.sleep(_SOCKET_LOOK_S)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody else has to do with the directory of that name meanwhile."""
        with self._lock:
            if name in self._busy:
                raise Refused("ABORTED", "another call for this volume is under way")
            self._busy.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(name)


def _left_behind(target: Path) -> bool:
    """The target is .../pods/UID/volumes/PLUGIN/NAME/mount. Without pods/ we do not see kubelet's directory."""
    pods = target.parents[4] if len(target.parents) > 4 else target.parent
    return pods.is_dir() and not os.path.lexists(target)

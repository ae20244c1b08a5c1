"""What is observed and what is decided, as plain values: the interface between deciding and acting.

Whoever acts fills the `Observed` structs from its watches and polls (`facts` makes the parts from what the API server
and the nodes say), calls `plan.pool`, `plan.dataset` or `plan.preload`, and carries the answer out. A plan is made from
everything that is seen now, never from what changed, so that a plan that was lost, or carried out twice, does no harm.

Two kinds of memory. What must outlive the operator is in the cluster: statuses, and the step of an update in the pool
state. `PoolMemory` and `PreloadMemory` may be lost: each plan returns what the next one is to be given, and a new
operator begins with empty ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from shoal_core import view
from shoal_operator import names
from shoal_operator.specs import DatasetSpec, PoolSpec, PreloadSpec

Manifest = dict[str, Any]
"""An object as the API server takes it."""


class Settings(msgspec.Struct, frozen=True):
    """What the operator was told when it was started."""

    namespace: str
    """Of the release: where the pools' objects are."""
    image: str
    """For pools that name none."""
    version: str = ""


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A CachePool, Dataset or Preload as found."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    created_s: float = 0.0
    deleted_s: float | None = None
    """When somebody asked for its deletion."""
    finalizers: tuple[str, ...] = ()
    status: Mapping[str, Any] = {}
    error: str = ""
    """Why the spec cannot be used; names the field. Then there is no spec."""
    unknown: tuple[str, ...] = ()
    """Fields of the spec that this operator does not know."""


class Pool(Resource, frozen=True, kw_only=True):
    """A CachePool."""

    spec: PoolSpec | None = None


class Dataset(Resource, frozen=True, kw_only=True):
    """A Dataset."""

    spec: DatasetSpec | None = None

    @property
    def name_on_nodes(self) -> str:
        return names.on_nodes(self.namespace, self.name)


class Preload(Resource, frozen=True, kw_only=True):
    """A Preload."""

    spec: PreloadSpec | None = None


class Node(msgspec.Struct, frozen=True):
    """A Kubernetes node."""

    name: str
    ready: bool
    ready_since_s: float
    """When `ready` last changed."""
    unschedulable: bool = False
    """Cordoned."""
    labels: Mapping[str, str] = {}
    taints: tuple[Mapping[str, str], ...] = ()


class Pod(msgspec.Struct, frozen=True):
    """A pod of a pool."""

    name: str
    uid: str
    node: str
    """Empty: not scheduled yet."""
    address: str = ""
    """Its IP; empty: none yet."""
    created_s: float = 0.0
    running: bool = False
    """Its container runs, ready or not."""
    ready: bool = False
    ready_since_s: float = 0.0
    """When `ready` last changed."""
    terminating: bool = False
    reason: str = ""
    """Why it does not run, as kubelet or the scheduler says it: ContainerCreating, CrashLoopBackOff, Unschedulable."""
    message: str = ""
    template_hash: str = ""
    image: str = ""
    capacity_bytes: int | None = None
    """What it was told to hold; this and its ports are as the spec was when it was made. None: not known."""
    data_port: int | None = None
    control_port: int | None = None


UNLISTED = "unlisted"
"""The manifest of a data set whose origin gives no listing: nobody knows what there is, objects are read by name."""


class DatasetReport(msgspec.Struct, frozen=True):
    """What one node says of one data set."""

    manifest: str = ""
    """Of the node that scanned it; with it objects, bytes and scanned_at_s."""
    generation: int = 0
    """Of the Dataset that was scanned; 0: the node does not say."""
    objects: int = 0
    bytes: int = 0
    scanned_at_s: float = 0.0
    error_code: str = ""
    error_message: str = ""
    cached_bytes: int = 0
    hits: int = 0
    misses: int = 0


class PreloadReport(msgspec.Struct, frozen=True):
    """What one node says of one run of a preload. Counts of objects and bytes are this node's share."""

    state: str = "listing"
    epoch: int = 0
    objects_scanned: int = 0
    objects_done: int = 0
    objects_failed: int = 0
    bytes_scanned: int = 0
    bytes_done: int = 0
    bytes_verified: int = 0
    bytes_owned: int = 0
    errors: tuple[str, ...] = ()


class NodeReport(msgspec.Struct, frozen=True):
    """What a cache node said of itself when it was last asked."""

    node: str
    at_s: float
    version: str = ""
    epoch: int = 0
    """Of the view that it follows."""
    view_error: str = ""
    draining: bool = False
    drained: bool = False
    """It has handed over what it could, and takes no more reads."""
    clients: int = 0
    leases: int = 0
    used_bytes: int = 0
    """Of its largest tier."""
    hits: int = 0
    misses: int = 0
    pull_queue: int = 0
    """Blocks that others offered and that it is about to bring."""
    fallbacks: Mapping[str, int] = {}
    datasets: Mapping[str, DatasetReport] = {}
    preloads: Mapping[str, PreloadReport] = {}
    """By name/namespace/run, as in the pool state."""


class Update(msgspec.Struct, frozen=True):
    """The one node of a pool that is being replaced. Kept in the pool state, so that a new operator goes on with it."""

    node: str
    phase: Literal["draining", "replacing", "settling"]
    """draining: hands its blocks over (pools without NVMe). replacing: its pod was deleted, the next is not ready.
    settling: the new one is ready, and its share comes back."""
    pod_uid: str
    """Of the pod that is to go."""
    since_s: float
    """When this phase began."""
    used_bytes: int | None = None
    """What the node held before; None: it did not say."""
    quiet_since_s: float | None = None
    """Settling: since when nothing more comes."""
    hands_over: bool = False
    """It owns nothing until the new pod is ready."""


class State(msgspec.Struct, frozen=True):
    """The pool state as found: ConfigMap `shoal-POOL`."""

    resource_version: str
    data: Mapping[str, str] = {}


class Seen(msgspec.Struct, frozen=True):
    """A fallback counter of one node."""

    count: int
    rose_s: float | None = None
    """When it was last seen to rise; None: not since this operator looks."""


class PoolMemory(msgspec.Struct, frozen=True):
    """What a pool's next plan wants to know of this one."""

    absent_since_s: Mapping[str, float] = {}
    """Nodes of the view whose pod does not serve, and since when."""
    fallbacks: Mapping[tuple[str, str], Seen] = {}
    """By node and kind."""


class PoolObserved(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that bears on one pool, as of `now_s`."""

    now_s: float
    settings: Settings
    pool: Pool
    pools: tuple[Pool, ...] = ()
    """All of the cluster, this one too: two may want the same path."""
    nodes: Mapping[str, Node] = {}
    """All of the cluster, by name."""
    pods: tuple[Pod, ...] = ()
    objects: Mapping[tuple[str, str], Manifest] = {}
    """The pool's objects by (kind, name), but for the pool state and the key. One that is there and not in here is
    applied once more, which does no harm."""
    has_key: bool = True
    state: State | None = None
    datasets: tuple[Dataset, ...] = ()
    """Those that name this pool."""
    preloads: tuple[Preload, ...] = ()
    """Those of these data sets."""
    reports: Mapping[str, NodeReport] = {}
    """The last of each node, by name; forgotten when the pod is."""
    patched_s: float | None = None
    """When this operator last patched the status."""
    memory: PoolMemory = PoolMemory()


class Event(msgspec.Struct, frozen=True):
    """To be recorded on the object the plan is for."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class Order(msgspec.Struct, frozen=True):
    """A call to one cache node's control door."""

    node: str
    address: str
    """host:port."""


class PoolPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done for a pool, in the order of the fields. If the state could not be written because somebody
    else did, the rest is dropped and planned anew."""

    finalizers: tuple[str, ...] | None = None
    """All that the object is to have; None: as they are."""
    make_key: bool = False
    apply: tuple[Manifest, ...] = ()
    write_state: Manifest | None = None
    """The ConfigMap, complete. metadata.resourceVersion is in it unless it is to be created: replace, not apply."""
    view: view.View | None = None
    """As it is after `write_state`; for the metrics, and for `PreloadObserved`."""
    drain: tuple[Order, ...] = ()
    """POST /drain."""
    stop_drain: tuple[Order, ...] = ()
    """DELETE /drain: it may stay after all."""
    delete_pods: tuple[tuple[str, str], ...] = ()
    """(name, uid), the uid as precondition."""
    status: Manifest | None = None
    """The whole status; None: leave it."""
    events: tuple[Event, ...] = ()
    memory: PoolMemory = PoolMemory()
    again_in_s: float | None = None
    """Look again then even if nothing happens; None: no need."""


class DatasetTotals(msgspec.Struct, frozen=True):
    """What all nodes of a pool say of one data set together; see `reporting.dataset_totals`."""

    scan: DatasetReport = DatasetReport()
    """The latest scan; no manifest: none has ended yet."""
    error_code: str = ""
    """The latest scanning node's; empty: none."""
    error_message: str = ""
    error_generation: int = 0
    """Of the Dataset that went wrong; 0: the node does not say."""
    cached_bytes: int = 0
    hits: int = 0
    misses: int = 0
    nodes: frozenset[str] = frozenset()
    """Those that have it."""


class DatasetObserved(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that bears on one Dataset."""

    now_s: float
    settings: Settings
    dataset: Dataset
    pool: Pool | None = None
    declared: bool = False
    """Whether it is in the pool state."""
    totals: DatasetTotals = DatasetTotals()
    secret_allowed: bool | None = None
    """Whether the pool's account may get the secret; None: not asked, or no answer yet."""
    patched_s: float | None = None


class DatasetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done for a Dataset, in the order of the fields."""

    finalizers: tuple[str, ...] | None = None
    status: Manifest | None = None
    events: tuple[Event, ...] = ()
    again_in_s: float | None = None


class PreloadMemory(msgspec.Struct, frozen=True):
    """What a preload's next plan wants to know of this one: how far it was, some seconds apart."""

    run: str = ""
    marks: tuple[tuple[float, int], ...] = ()
    """(when, bytes done), oldest first."""


class PreloadObserved(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that bears on one Preload."""

    now_s: float
    preload: Preload
    dataset: Dataset | None = None
    pool: Pool | None = None
    view: view.View | None = None
    reports: Mapping[str, NodeReport] = {}
    """Of the pool's nodes."""
    version: str = ""
    """Of this operator."""
    patched_s: float | None = None
    memory: PreloadMemory = PreloadMemory()


class PreloadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done for a Preload, in the order of the fields."""

    delete: bool = False
    """Its time after it finished is over."""
    status: Manifest | None = None
    events: tuple[Event, ...] = ()
    memory: PreloadMemory = PreloadMemory()
    again_in_s: float | None = None

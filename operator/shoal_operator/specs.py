"""What people write into CachePool, Dataset and Preload, as frozen structs.

The API server checks a spec by its CRD, but which CRD is installed is not ours to choose: one that is newer may hold
fields and words that this operator does not know. Unknown fields are left aside and named (`unknown`); a value that
means nothing here is an error that names the field. Neither is ever raised from a reconcile: both become conditions.
Defaults are repeated here because a CRD that is older may not have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec import Meta, field

from shoal_core.errors import ConfigError
from shoal_operator.quantities import Quantity, parse

S = TypeVar("S", bound=msgspec.Struct)

Port = Annotated[int, Meta(ge=1, le=65535)]
Replicas = Annotated[int, Meta(ge=1, le=8)]
Seconds = Annotated[int, Meta(ge=0)]


class Dram(msgspec.Struct, frozen=True, rename="camel"):
    """The memory tier."""

    budget_bytes: Quantity = field(name="budget")
    huge_pages: Literal["auto", "never", "require"] = "auto"


class Nvme(msgspec.Struct, frozen=True, rename="camel"):
    """The disk tier of every node."""

    path: Annotated[str, Meta(pattern="^/")]
    """On the host; it must exist."""
    capacity_bytes: Quantity = field(name="capacity")
    keep_free_bytes: Quantity = field(name="keepFree", default=Quantity(0))
    require_mount: bool = True
    """Refuse a path that is on the same file system as its parent: the root disk, when a mount is missing."""


class Topology(msgspec.Struct, frozen=True, rename="camel"):
    """Labels of the Kubernetes node that say where it stands; empty: nobody knows."""

    zone_key: str = "topology.kubernetes.io/zone"
    rack_key: str = ""


class UpdateStrategy(msgspec.Struct, frozen=True, rename="camel"):
    """Who replaces pods that are not as the pool wants them: the operator one by one, or whoever deletes them."""

    type: Literal["RollingUpdate", "OnDelete"] = "RollingUpdate"


class SharedMemory(msgspec.Struct, frozen=True, rename="camel"):
    """Namespaces whose pods may map the cache's memory; ["*"]: all."""

    namespaces: tuple[str, ...] = ()


class Ports(msgspec.Struct, frozen=True, rename="camel"):
    """On each node's pod address."""

    data: Port = 7440
    control: Port = 7441


class PoolSpec(msgspec.Struct, frozen=True, rename="camel"):
    """CachePool.spec."""

    dram: Dram
    image: str = ""
    """Empty: the operator's own."""
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[dict[str, Any], ...] = ()
    nvme: Annotated[tuple[Nvme, ...], Meta(max_length=1)] = ()
    replicas: Replicas = 1
    topology: Topology = Topology()
    block_size_bytes: Quantity = field(name="blockSize", default=Quantity(4 << 20))
    resources: dict[str, Any] = {}
    update_strategy: UpdateStrategy = UpdateStrategy()
    drain_timeout_s: Seconds = field(name="drainTimeoutSeconds", default=600)
    drain_nodes: tuple[str, ...] = ()
    shared_memory: SharedMemory = SharedMemory()
    host_network: bool = False
    ports: Ports = Ports()
    priority_class_name: str = ""

    @property
    def capacity_bytes(self) -> int:
        """Of one node: its weight in placement. The disk holds what memory holds."""
        return int(self.nvme[0].capacity_bytes if self.nvme else self.dram.budget_bytes)


class SecretRef(msgspec.Struct, frozen=True, rename="camel"):
    """In the data set's own namespace."""

    name: str


class Source(msgspec.Struct, frozen=True, rename="camel"):
    """Where a data set's objects are."""

    uri: str
    endpoint: str = ""
    region: str = ""
    secret_ref: SecretRef | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class VersionPolicy(msgspec.Struct, frozen=True, rename="camel"):
    """Refresh: what the origin has now. Pinned: a manifest, and what differs from it is said."""

    policy: Literal["Refresh", "Pinned"] = "Refresh"
    refresh_s: Seconds = field(name="refreshSeconds", default=60)
    manifest: str = ""
    """Pinned and empty: the first that was seen."""


class DatasetSpec(msgspec.Struct, frozen=True, rename="camel"):
    """Dataset.spec."""

    pool: str
    source: Source
    version: VersionPolicy = VersionPolicy()
    replicas: Replicas | None = None
    """None: as the pool."""
    eviction: Literal["S3FIFO", "Epoch", "Pin"] = "S3FIFO"
    quota_bytes: Quantity | None = field(name="quota", default=None)
    ttl_s: Seconds | None = field(name="ttlSeconds", default=None)


class PreloadSpec(msgspec.Struct, frozen=True, rename="camel"):
    """Preload.spec."""

    dataset: str
    """In the same namespace."""
    paths: tuple[str, ...] = ()
    policy: Literal["Once", "Cron", "OnChange"] = "Once"
    schedule: str = ""
    bytes_per_s: Quantity | None = field(name="bytesPerSecond", default=None)
    """Of the whole pool."""
    verify: bool = True
    ttl_after_finished_s: Seconds | None = field(name="ttlSecondsAfterFinished", default=None)
    suspend: bool = False


def build(kind: type[S], data: object) -> S:
    """A spec; ConfigError names the field and what is allowed."""
    try:
        return msgspec.convert(data, kind, dec_hook=_quantity)
    except msgspec.ValidationError as error:
        text, _, path = str(error).replace("`", "").partition(" - at ")
        place = f"spec{path.removeprefix('$')}"
        raise ConfigError(f"{place}: {text[0].lower()}{text[1:]}") from None


def unknown(kind: type[msgspec.Struct], data: object) -> tuple[str, ...]:
    """Paths of the fields that this operator does not know, in order."""
    return tuple(_unknown(kind, data, "spec"))


def _quantity(kind: type, value: object) -> object:
    assert kind is Quantity, "the only type in a spec that JSON does not have"
    return parse(value)


def _unknown(kind: Any, data: object, path: str) -> Iterator[str]:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    inner = [argument for argument in (kind, *get_args(kind)) if _is_struct(argument)]
    if not inner:
        return
    if isinstance(data, list | tuple):
        for place, item in enumerate(cast("list[object]", data)):
            yield from _unknown(inner[0], item, f"{path}[{place}]")
    elif isinstance(data, Mapping):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(inner[0])}
        for name, value in cast("Mapping[str, object]", data).items():
            if name not in fields:
                yield f"{path}.{name}"
            else:
                yield from _unknown(fields[name], value, f"{path}.{name}")


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)

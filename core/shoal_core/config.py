"""What a node and a client are told: frozen structs, read once, the explanation under each field.

`parse` takes what a TOML or JSON file holds and returns a `NodeConfig` that can work, or raises a ConfigError that
names the field and what is allowed. It also checks what no field can know alone: that a block fits a budget, a quota
the tiers. Files are read elsewhere. Sizes are numbers of bytes or text like "8GiB".
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from shoal_core import limits, names, selection, structure
from shoal_core.errors import ConfigError
from shoal_core.eviction import PolicyName
from shoal_core.view import REPLICA_COUNT_MAX

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=limits.DEADLINE_S_MAX)]

INDEX_BYTES_MIN = 4096 * limits.INDEX_ENTRY_BYTES
"""What the index of the smallest node may need; the DRAM budget holds it beside at least one slab."""

UNIX_PATH_BYTES_MAX = 107
"""sockaddr_un ends there."""

_CONFIG_MAP = re.compile(r"kubernetes:([a-z0-9][a-z0-9-]{0,62})/([a-z0-9][a-z0-9.-]{0,252})")
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S.*")


class Doors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the node can be reached; at least `unix` or `tcp`."""

    unix: str | None = None
    """Path of the socket for readers on this host, absolute, at most 107 bytes."""
    tcp: str | None = None
    """host:port for readers elsewhere; port 0 takes any free one. It serves everybody who can connect, unless
    `access.key_file` is set: bind it accordingly."""
    control: str | None = None
    """host:port or unix:/path of the control API: health, metrics, status, drain."""


class Dram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The memory tier."""

    budget_bytes: int
    """All memory for cached bytes and their index. Fills in flight and 150 MiB of process come on top."""
    huge_pages: Literal["auto", "never", "require"] = "auto"
    """auto: where the system has free ones, else small pages, and says so; require: refuse to start without."""


class Nvme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One directory of the disk tier."""

    directory: str
    """Absolute; used by one node at a time; kept over restarts."""
    budget_bytes: int
    """Preallocated as it is first used, and never exceeded."""
    keep_free_bytes: int = 0
    """Of the file system, besides the budget: its size must allow both, and what is free is not used beyond it."""
    require_mount: bool = False
    """Refuse to start unless the directory lies on a file system that is mounted there: a disk that did not come up
    leaves an empty directory of the root file system."""


class Fill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How missing bytes are brought from the origin."""

    block_size_bytes: int = limits.BLOCK_BYTES_DEFAULT
    """Unit of caching: a power of two from 512 bytes, or a multiple of 64 KiB, at most 16 MiB. Part of each block's
    identity: after a change the cache is cold."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=limits.FILLS_IN_FLIGHT_MAX)] = 16
    """Ranged reads in flight to origins."""
    timeout_s: Seconds = 60.0
    """For one ranged read, retries included."""
    range_bytes_max: Annotated[int, msgspec.Meta(ge=1, le=limits.BATCH_BYTES_MAX)] = limits.BLOCK_BYTES_DEFAULT
    """Neighbouring missing blocks are asked for in one read up to this size, but always one whole block."""
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    """After a connection error or a 5xx."""


class Leases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What readers may hold in place."""

    client_bytes_max: int | None = None
    """Bytes one client may hold against eviction; beyond, its reads are copies. None: 75 % of the DRAM budget."""


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A space with a name: readers say shoal://name/path."""

    url: str
    """Origin prefix, for instance s3://bucket/folder."""
    eviction: PolicyName = "s3fifo"
    """s3fifo: general; epoch: read over and over, larger than the cache; pin: never gives way."""
    quota_bytes: int | None = None
    """Hard cap in each tier. None: the tier's budget."""
    ttl_s: Count | None = None
    """Blocks go this long after they were filled. None: when room is needed."""
    replicas: Annotated[int, msgspec.Meta(ge=1, le=REPLICA_COUNT_MAX)] | None = None
    """Nodes that hold each block. None: as the view says."""
    endpoint: str | None = None
    """http(s) URL of its object store, where that is not the one that `origins`, the environment or the cloud say."""
    region: str | None = None
    """Of its bucket."""
    include: tuple[str, ...] = ()
    """Patterns of the objects that belong to it, below `url`: * and ? in a segment, ** for many. Empty: all."""
    exclude: tuple[str, ...] = ()
    """Patterns of objects that do not belong to it, though `include` names them."""
    refresh_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """How long what the origin said of an object is trusted. None: limits.RESOLVE_FRESH_S."""


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the node is one of many."""

    view: str
    """Where the view is: an absolute path, or an http(s) URL such as another node's control door with /view; or
    kubernetes:NAMESPACE/NAME, a ConfigMap that holds the data sets and preloads of the pool as well."""
    poll_s: Seconds = 1.0
    """How often it is looked at."""
    near_fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.25
    """Of the DRAM budget, for copies of blocks that other nodes own."""
    repair_bytes_per_s: int = 256 * limits.MIB
    """What the node brings from others in the background, at most: replicas, repair, hand-over."""
    repair_after_s: Seconds = 30.0
    """A node that did not answer for so long counts as dead, and what it held is brought to others."""
    scrub_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 600.0
    """How often the node offers what it holds to the others that should hold it."""
    handover_on_exit_s: Annotated[float, msgspec.Meta(ge=0, le=limits.DEADLINE_S_MAX)] = 0.0
    """How long a node that is told to end hands its blocks over first. 0: it ends at once, its disk tier stays warm."""


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is served, and what. The sockets `doors.unix` and the memory door serve whoever reaches them."""

    key_file: str | None = None
    """Absolute; the pool's secret, at least 16 bytes. With it, the TCP door answers only to a token signed with it, and
    POST /drain to an operator's. None: the TCP door serves everybody."""
    pool: str = ""
    """Name of the pool; tokens of another are refused. Empty: the key alone decides."""
    volumes_directory: str | None = None
    """Absolute; in it a directory for each volume: access.json says whose it is, mount/ gets the volume's socket."""
    share_memory_with: tuple[str, ...] = ()
    """Namespaces whose readers may map the node's memory, through their volumes' sockets; "*" is all of them. They see
    all of it, so they must trust each other; the others get their bytes through the socket."""

    def shares_memory_with(self, namespace: str) -> bool:
        return namespace in self.share_memory_with or "*" in self.share_memory_with


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a node is told."""

    node_name: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    """Unique in its pool; in Kubernetes the name of the node."""
    dram: Dram
    doors: Doors = Doors()
    tenant: Annotated[str, msgspec.Meta(min_length=1, max_length=253)] | None = None
    """Who owns what is cached, part of each block's identity: the same on all nodes of a cluster. None: the user that
    the node runs as."""
    state_directory: str | None = None
    """Absolute; for what must outlive the process beside the disk tier. None: nothing does."""
    nvme: tuple[Nvme, ...] = ()
    """Empty: no disk tier. At present at most one directory."""
    fill: Fill = Fill()
    leases: Leases = Leases()
    origins: dict[str, dict[str, str]] = {}
    """Options of the object store client by URL prefix; the longest prefix wins. Credentials are better left to the
    environment."""
    datasets: dict[str, Dataset] = {}
    """By name: a DNS label, or two joined by a dot."""
    access: Access = Access()
    cluster: Cluster | None = None
    """None: the node is alone."""
    linger_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Ends this long after the last client left. None: never."""

    @property
    def slab_bytes(self) -> int:
        """Slab size of both tiers."""
        return slab_bytes(self.dram.budget_bytes, self.fill.block_size_bytes)

    @property
    def lease_bytes_max(self) -> int:
        """Bytes one client may hold against eviction."""
        given = self.leases.client_bytes_max
        return int(self.dram.budget_bytes * limits.LEASED_FRACTION_DEFAULT) if given is None else given


class ClientConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """client.json: how a process finds its node, and what names mean when it is gone."""

    addresses: tuple[str, ...]
    """unix:/path or tcp:host:port, nearest first; the first that answers is used."""
    datasets: dict[str, str] = {}
    """Origin prefix by name, so that shoal://name/path can be read from the origin while no node answers."""
    zone: str = ""
    """Where this process is, to find the nearest nodes; empty: as its own node is, else unknown."""
    rack: str = ""
    token_file: str | None = None
    """Absolute; what proves to nodes who this process is. Read anew for each connection."""


def slab_bytes(budget_bytes: int, block_size_bytes: int) -> int:
    """A power of two of about a 64th of the budget, at least a block and 64 KiB, at most 16 MiB.

    Small enough that many (space, class) pairs have one, large enough that most classes lie close together.
    """
    share = 1 << max(budget_bytes // 64, 1).bit_length() - 1
    block = 1 << (block_size_bytes - 1).bit_length()
    return max(min(share, limits.SLAB_BYTES_MAX), block, limits.PAGE_BYTES)


def parse(data: Mapping[str, object]) -> NodeConfig:
    """The configuration of a node; ConfigError names the field and what is allowed."""
    config = structure.build(NodeConfig, data)
    _check_block_size(config.fill)
    _check_doors(config.doors)
    _check_budgets(config)
    if config.cluster is not None:
        location = config.cluster.view
        _expect(
            location.startswith(("/", "file:///", "http://", "https://")) or in_kubernetes(location), "cluster.view",
            f"{location!r} is neither an absolute path nor an http URL nor kubernetes:NAMESPACE/NAME",
        )  # fmt: skip
    for prefix in config.origins:
        _expect(
            _URL.fullmatch(prefix), structure.join("origins", prefix), "the name is a URL prefix such as s3://bucket"
        )
    for name, dataset in config.datasets.items():
        check_dataset(structure.join("datasets", name), name, dataset, config)
    _check_absolute("state_directory", config.state_directory)
    _check_access(config.access)
    return config


def in_kubernetes(location: str) -> tuple[str, str] | None:
    """(namespace, name) of the ConfigMap that a `cluster.view` names; None for any other place."""
    match = _CONFIG_MAP.fullmatch(location)
    return (match[1], match[2]) if match else None


def parse_client(data: Mapping[str, object]) -> ClientConfig:
    """The configuration of a client."""
    config = structure.build(ClientConfig, data)
    _expect(config.addresses, "addresses", "at least one is needed")
    for place, address in enumerate(config.addresses):
        path = f"addresses[{place}]"
        kind, _, rest = address.partition(":")
        _expect(kind in ("unix", "tcp"), path, f"{address!r} begins with neither unix: nor tcp:")
        (_check_unix if kind == "unix" else _check_host_port)(path, rest)
    for name, url in config.datasets.items():
        path = structure.join("datasets", name)
        _check_name_and_url(path, path, name, url)
    _check_absolute("token_file", config.token_file)
    return config


def _expect(holds: object, path: str, message: str) -> None:
    if not holds:
        raise ConfigError(f"{path}: {message}")


def _check_block_size(fill: Fill) -> None:
    size = fill.block_size_bytes
    fits = limits.BLOCK_BYTES_MIN <= size <= limits.BLOCK_BYTES_MAX
    _expect(
        fits and (size & (size - 1) == 0 or size % limits.PAGE_BYTES == 0), "fill.block_size_bytes",
        f"{size} is neither a power of two from {limits.BLOCK_BYTES_MIN} bytes nor a multiple of 64 KiB, "
        f"of at most {limits.BLOCK_BYTES_MAX >> 20} MiB",
    )  # fmt: skip


def _check_doors(doors: Doors) -> None:
    _expect(doors.unix or doors.tcp, "doors", "at least one of unix and tcp is needed")
    if doors.unix is not None:
        _check_unix("doors.unix", doors.unix)
    if doors.tcp is not None:
        _check_host_port("doors.tcp", doors.tcp)
    if doors.control is not None:
        kind, _, rest = doors.control.partition(":")
        if kind == "unix":
            _check_unix("doors.control", rest)
        else:
            _check_host_port("doors.control", doors.control)


def _check_access(access: Access) -> None:
    _check_absolute("access.key_file", access.key_file)
    _check_absolute("access.volumes_directory", access.volumes_directory)
    for place, namespace in enumerate(access.share_memory_with):
        allowed = namespace == "*" or names.is_label(namespace)
        _expect(allowed, f"access.share_memory_with[{place}]", f'{namespace!r} is neither a namespace nor "*"')


def _check_budgets(config: NodeConfig) -> None:
    budget, slab = config.dram.budget_bytes, config.slab_bytes
    least = slab + INDEX_BYTES_MIN
    _expect(
        budget >= least, "dram.budget_bytes",
        f"{budget} is too small for blocks of {config.fill.block_size_bytes} bytes: "
        f"at least {least} (one slab of {slab} and {INDEX_BYTES_MIN} for the index)",
    )  # fmt: skip
    _expect(len(config.nvme) <= 1, "nvme[1]", "at present there can be one directory")
    for place, nvme in enumerate(config.nvme):
        _check_absolute(f"nvme[{place}].directory", nvme.directory)
        path = f"nvme[{place}].budget_bytes"
        _expect(nvme.budget_bytes >= slab, path, f"{nvme.budget_bytes} is less than one slab, {slab} bytes")
    leased = config.leases.client_bytes_max
    _expect(
        leased is None or leased <= budget, "leases.client_bytes_max",
        f"{leased} is more than the DRAM budget, {budget} bytes",
    )  # fmt: skip


def check_dataset(path: str, name: str, dataset: Dataset, config: NodeConfig) -> None:
    """ConfigError, its field names starting with `path`, unless a node of `config` can hold this dataset."""
    _check_name_and_url(path, f"{path}.url", name, dataset.url)
    if dataset.quota_bytes is not None:
        most = max(config.dram.budget_bytes, *(nvme.budget_bytes for nvme in config.nvme), 0)
        block = config.fill.block_size_bytes
        _expect(
            block <= dataset.quota_bytes <= most, f"{path}.quota_bytes",
            f"{dataset.quota_bytes} is not between one block, {block} bytes, and the largest tier's budget, {most}",
        )  # fmt: skip
    _expect(
        dataset.endpoint is None or _ENDPOINT.fullmatch(dataset.endpoint), f"{path}.endpoint",
        f"{dataset.endpoint!r} is not an http(s) URL such as https://minio.example:9000",
    )  # fmt: skip
    selection.check(f"{path}.include", dataset.include)
    selection.check(f"{path}.exclude", dataset.exclude)


def _check_name_and_url(name_path: str, url_path: str, name: str, url: str) -> None:
    _expect(names.is_dataset(name), name_path, names.DATASET_RULE)
    _expect(_URL.fullmatch(url), url_path, f"{url!r} is not a URL such as s3://bucket/folder")


def _check_absolute(path: str, directory: str | None) -> None:
    _expect(directory is None or directory.startswith("/"), path, f"{directory!r} is not an absolute path")


def _check_unix(path: str, socket: str) -> None:
    _check_absolute(path, socket)
    size = len(socket.encode("utf-8", "surrogateescape"))
    _expect(size <= UNIX_PATH_BYTES_MAX, path, f"a socket's path has at most 107 bytes, this one {size}")


def _check_host_port(path: str, address: str) -> None:
    match = _HOST_PORT.fullmatch(address)
    _expect(match and int(match[2]) <= 65535, path, f"{address!r} is not host:port (IPv6 as [::1]:port)")

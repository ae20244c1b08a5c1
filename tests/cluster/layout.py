"""Where a cluster has its files, ports and addresses, so that several can run beside each other.

Everything that is decided once is in `settings.json` of the cluster's directory; the same cluster comes up again under
the same addresses. A cluster with nodes claims a number from 0 to 15 for this machine, and with it the bridge
shoal-cN, node addresses 10.98.N.0/24, pods 10.(100+N).0.0/16 and services 10.(120+N).0.0/16. A control plane alone has
no number: it lives on loopback.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.cluster.processes import ClusterError, started

_CLAIMS = Path("/run/shoal-clusters")
NUMBERS = range(16)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a cluster was made; does not change while it exists."""

    api_port: int
    etcd_port: int
    number: int | None = None
    """Of a cluster with nodes."""
    nodes: int = 0
    stock_timeouts: bool = False
    """Kubernetes' own: a lost node is noticed after 50 s, not 6."""
    proxy_mode: str = "nftables"
    disks: dict[str, str] = {}
    """Path on each node -> size of an ext4 file system ("512M"), or "" for a bind mount without a size of its own."""
    without_nvme: list[int] = []
    """Nodes without the label shoal.dev/nvme."""
    owner: list[str] = []
    """Pid and start time of the process that must not end before the cluster does; empty: it stays until `down`."""


class Layout:
    """Names and addresses of one cluster. Node numbers count from 1."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory = directory
        self.settings = settings

    @property
    def name(self) -> str:
        """Prefix of everything outside the directory: bridge, namespaces, cgroups."""
        return f"shoal-c{self.settings.number}"

    @property
    def api_address(self) -> str:
        return "127.0.0.1" if self.settings.number is None else self.node_address(0)

    @property
    def api_url(self) -> str:
        return f"https://{self.api_address}:{self.settings.api_port}"

    @property
    def etcd_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.etcd_port}"

    @property
    def nodes(self) -> range:
        return range(1, self.settings.nodes + 1)

    @property
    def services(self) -> str:
        return f"10.{120 + (self.settings.number or 0)}.0.0/16"

    @property
    def api_service(self) -> str:
        return f"10.{120 + (self.settings.number or 0)}.0.1"

    @property
    def dns_service(self) -> str:
        return f"10.{120 + (self.settings.number or 0)}.0.10"

    @property
    def pods(self) -> str:
        return f"10.{100 + (self.settings.number or 0)}.0.0/16"

    def node_pods(self, node: int) -> str:
        return f"10.{100 + (self.settings.number or 0)}.{node}.0/24"

    def node_address(self, node: int) -> str:
        """Of a node; of the machine itself on the nodes' bridge for node 0."""
        return f"10.98.{self.settings.number}.{10 + node if node else 1}"

    def node_directory(self, node: int) -> Path:
        return self.directory / f"node-{node}"

    def kubeconfig(self, who: str = "admin") -> Path:
        return self.directory / f"{who}.kubeconfig"

    def certificate(self, who: str) -> Path:
        return self.directory / "pki" / f"{who}.crt"

    def key(self, who: str) -> Path:
        return self.directory / "pki" / f"{who}.key"

    def save(self) -> None:
        (self.directory / "settings.json").write_bytes(msgspec.json.encode(self.settings))


def load(directory: Path) -> Layout | None:
    try:
        content = (directory / "settings.json").read_bytes()
    except FileNotFoundError:
        return None
    return Layout(directory, msgspec.json.decode(content, type=Settings))


def make_directory(directory: Path) -> None:
    """Keys lie in it, so it is ours and nobody else reads it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise ClusterError(f"{directory} belongs to somebody else")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def claim_number(directory: Path) -> int:
    """The lowest number that no other cluster of this machine has; a claim is over when its directory is gone."""
    with _claims_locked():
        for number in NUMBERS:
            claim = _CLAIMS / str(number)
            if not claim.exists() or not Path(claim.read_text()).is_dir():
                claim.write_text(str(directory))
                return number
    raise ClusterError(f"{len(NUMBERS)} clusters run on this machine already; see {_CLAIMS}")


def release_number(number: int) -> None:
    """The last cluster takes the empty folders along that nodes mount on."""
    with _claims_locked():
        (_CLAIMS / str(number)).unlink(missing_ok=True)
        made = _CLAIMS / "made"
        if any(claim.name != "made" for claim in _CLAIMS.iterdir()) or not made.exists():
            return
        for path in sorted(made.read_text().splitlines(), key=len, reverse=True):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        shutil.rmtree(_CLAIMS)


def make_mount_points(paths: list[str]) -> None:
    """Folders of the machine, which stay empty; those that were missing are noted down for the end."""
    with _claims_locked(), (_CLAIMS / "made").open("a") as made:
        for path in map(Path, paths):
            for folder in [*reversed(path.parents), path]:
                if not folder.exists():
                    folder.mkdir()
                    made.write(f"{folder}\n")


@contextlib.contextmanager
def _claims_locked() -> Iterator[None]:
    with (_CLAIMS.parent / f"{_CLAIMS.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _CLAIMS.mkdir(exist_ok=True)
        yield


def owner_of(pid: int) -> list[str]:
    return [str(pid), started(pid) or ""]


def abandoned(settings: Settings) -> bool:
    """Whether the process that the cluster belonged to is gone."""
    return bool(settings.owner) and started(int(settings.owner[0])) != settings.owner[1]

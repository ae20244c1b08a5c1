"""What nodes need of the machine: root, the right to make namespaces, and Debian's packages, installed where missing.

None of the packages runs as a service; a node starts its own containerd.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.cluster.processes import Unavailable

_PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "mkfs.ext4": "e2fsprogs",
    "ip": "iproute2",
    "openssl": "openssl",
}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def require() -> None:
    """Returns when this machine can have nodes; Unavailable otherwise."""
    if os.geteuid() != 0:
        raise Unavailable("nodes of a Kubernetes cluster need root")
    tried = subprocess.run(
        ["unshare", "--mount", "--uts", "--ipc", "--pid", "--net", "--fork", "true"], capture_output=True, check=False
    )
    if tried.returncode:
        raise Unavailable("nodes of a Kubernetes cluster need CAP_SYS_ADMIN, to make namespaces")
    missing = _missing()
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"no containerd to be had: nodes need {', '.join(missing)}, and there is no apt-get")
    print(f"installing for the nodes of a cluster: {' '.join(missing)}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stdout[-2000:], file=sys.stderr)
            raise Unavailable(f"no containerd to be had: apt-get could not install {', '.join(missing)}")


def _missing() -> list[str]:
    return [package for program, package in _PROGRAMS.items() if shutil.which(program, path=_PATH) is None]

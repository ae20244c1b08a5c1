"""Pid 1 of one node: private mounts, then reaping, until it is killed. Runs as a script, with the node's directory.

It is started inside fresh namespaces (mount, pid, uts, ipc) and in the node's network. The paths below are the same on
every node and hold other contents: mounts that exist only in this namespace, and vanish with it. So containerd, kubelet
and whatever a pod reaches by hostPath keep their usual paths. A disk with a size is an ext4 file system in a file, with
its own `df` and its own end of space.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BINDS = (
    "/etc/cni/net.d",
    "/run/containerd",
    "/run/netns",  # else names of dead network namespaces stay on the machine
    "/run/shoal.dev",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)


def call(*argv: str) -> None:
    subprocess.run(argv, check=True)


def mount_disk(node: Path, path: str, size: str) -> None:
    """Mounts the disk of this path, made at its first mount."""
    source = node / "disks" / path.strip("/").replace("/", "-")
    Path(path).mkdir(parents=True, exist_ok=True)
    if not size:
        source.mkdir(parents=True, exist_ok=True)
        call("mount", "--bind", str(source), path)
        return
    image = source.with_suffix(".ext4")
    if not image.exists():
        image.parent.mkdir(exist_ok=True)
        call("truncate", "-s", size, str(image))
        call("mkfs.ext4", "-q", "-m", "0", str(image))
    call("mount", "-o", "loop", str(image), path)  # the loop device is freed with the mount


def main(node: Path) -> None:
    call("mount", "--make-rprivate", "/")
    for path in BINDS:
        source = node / "fs" / path.strip("/").replace("/", "-")
        source.mkdir(parents=True, exist_ok=True)
        Path(path).mkdir(parents=True, exist_ok=True)
        call("mount", "--bind", str(source), path)
    for path, size in sorted(json.loads((node / "disks.json").read_text()).items()):
        mount_disk(node, path, size)
    # Kubelet, containerd and CSI drivers see each other's mounts.
    call("mount", "--make-rshared", "/")
    call("hostname", node.name)
    (node / "ready").write_text("")


def reap() -> None:
    """What lost its parent comes to pid 1, which has no default action for signals either."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.5)


if __name__ == "__main__":
    if len(sys.argv) == 4:  # a disk more, in a node that runs
        mount_disk(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    else:
        main(Path(sys.argv[1]))
        reap()

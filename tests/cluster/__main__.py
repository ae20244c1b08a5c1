"""`python -m tests.cluster up|down|...`: a real Kubernetes on this machine; its directory is $SHOAL_CLUSTER_DIR."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster import binaries, memory
from tests.cluster.cluster import CONTROL_PLANE, WITH_NODES, Cluster
from tests.cluster.processes import ClusterError, Unavailable

_FAULTS = {
    "crash": "end everything in a node at once, as a power cut would",
    "boot": "start it again, with the disks it had",
    "kubelet-stop": "kill a node's kubelet; its pods run on",
    "kubelet-start": "start it again",
    "net-down": "pull a node's cable",
    "net-up": "put it back",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="make the cluster, or bring up again what is missing of it")
    up.add_argument("--control-plane", action="store_true", help="no nodes, no root: API server and controllers only")
    up.add_argument("--nodes", type=int, default=3)
    up.add_argument("--stock-timeouts", action="store_true", help="Kubernetes' own: a lost node is noticed after 50 s")
    up.add_argument("--disk", action="append", metavar="PATH[=SIZE]", help="on each node; SIZE (512M) makes it ext4")
    load = commands.add_parser("load", help="import images on every node")
    load.add_argument("images", nargs="+", type=Path, metavar="IMAGE.tar")
    inside = commands.add_parser("exec", help="run a command inside a node")
    inside.add_argument("node", type=int)
    inside.add_argument("argv", nargs=argparse.REMAINDER)
    disk = commands.add_parser("disk", help="mount an ext4 file system of a size on a node")
    disk.add_argument("node", type=int)
    disk.add_argument("path")
    disk.add_argument("size")
    for name, text in _FAULTS.items():
        commands.add_parser(name, help=text).add_argument("node", type=int)
    down = commands.add_parser("down", help="end everything and remove it")
    down.add_argument("--keep", action="store_true", help="keep objects, images and disks for the next up")
    for name, text in {
        "status": "what runs, as JSON",
        "api-stop": "kill the API server",
        "api-start": "start it again",
        "mem": "what each part takes of memory",
        "kubeconfig": "print the path of the administrator's kubeconfig",
    }.items():
        commands.add_parser(name, help=text)
    return parser


def _run(cluster: Cluster, given: argparse.Namespace) -> None:
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)

    match given.command:
        case "up":
            binaries.build(CONTROL_PLANE if given.control_plane else WITH_NODES)
            nodes = 0 if given.control_plane else given.nodes
            disks = {path: size for path, _, size in (disk.partition("=") for disk in given.disk or ())}
            cluster.up(nodes=nodes, stock_timeouts=given.stock_timeouts, disks=disks, say=say)
            print(f"export KUBECONFIG={cluster.kubeconfig}")
        case "down":
            cluster.down(keep=given.keep)
            say("down")
        case "status":
            print(json.dumps(cluster.status(), indent=1))
        case "api-stop":
            cluster.stop_api()
        case "api-start":
            cluster.start_api()
        case "kubeconfig":
            print(cluster.kubeconfig)
        case "mem":
            memory.print_table(cluster)
        case "load":
            cluster.load(*given.images)
        case "exec":
            words = cluster.nodes.enter(given.node, *given.argv)
            os.execvp(words[0], words)
        case "disk":
            cluster.nodes.add_disk(given.node, given.path, given.size)
        case fault:
            _order(cluster, fault, given.node)


def _order(cluster: Cluster, fault: str, node: int) -> None:
    {
        "crash": cluster.crash,
        "boot": cluster.boot,
        "kubelet-stop": cluster.nodes.stop_kubelet,
        "kubelet-start": cluster.nodes.start_kubelet,
        "net-down": cluster.disconnect,
        "net-up": cluster.connect,
    }[fault](node)


def main() -> int:
    given = _parser().parse_args()
    directory = os.environ.get("SHOAL_CLUSTER_DIR") or f"{tempfile.gettempdir()}/shoal-cluster"
    try:
        _run(Cluster(Path(directory).absolute()), given)
    except (ClusterError, Unavailable) as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, Unavailable) else 1
    return 0


sys.exit(main())

"""The network of a cluster: one bridge, a network namespace for each node, and routes instead of an overlay.

A node's pods have a range of their own, and every node and the machine itself know it by a route; so pods, nodes and
tests reach each other directly. Nodes and pods reach nothing else: there is no masquerade.
"""

from __future__ import annotations

from pathlib import Path

from tests.cluster.layout import Layout
from tests.cluster.processes import run


def make(layout: Layout) -> None:
    bridge = _bridge(layout)
    if not Path(f"/sys/class/net/{bridge}").exists():
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "addr", "add", f"{layout.node_address(0)}/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for node in layout.nodes:
        if not namespace(layout, node).exists():
            _make_node(layout, node)
        run("ip", "route", "replace", layout.node_pods(node), "via", layout.node_address(node))


def namespace(layout: Layout, node: int) -> Path:
    return Path(f"/run/netns/{layout.name}-{node}")


def switch(layout: Layout, node: int, state: str) -> None:
    """ "down" cuts the node off, as pulling its cable would; "up" puts the cable back."""
    run("ip", "link", "set", _port(layout, node), state)


def remove(layout: Layout) -> None:
    """The namespaces take what is in them along, the bridge takes its routes."""
    for path in Path("/run/netns").glob(f"{layout.name}-[0-9]*"):
        run("ip", "netns", "del", path.name, check=False)
    run("ip", "link", "del", _bridge(layout), check=False)


def _bridge(layout: Layout) -> str:
    return layout.name


def _port(layout: Layout, node: int) -> str:
    return f"{layout.name}-{node}"


def _make_node(layout: Layout, node: int) -> None:
    name = namespace(layout, node).name
    inside = ("ip", "-n", name)
    run("ip", "netns", "add", name)
    run("ip", "link", "add", _port(layout, node), "type", "veth", "peer", "name", "eth0", "netns", name)
    run("ip", "link", "set", _port(layout, node), "master", _bridge(layout), "up")
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "addr", "add", f"{layout.node_address(node)}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "route", "add", "default", "via", layout.node_address(0))
    for other in layout.nodes:
        if other != node:
            run(*inside, "route", "add", layout.node_pods(other), "via", layout.node_address(other))
    run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    # Without the bridge module's switch, the service rules of a pod's own node do not see its packets.
    run("ip", "netns", "exec", name, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", check=False)

"""`shoal-csi`: the CSI driver of one machine, until SIGTERM.

It serves kubelet's plugin registration itself, so that its pod has one container. The registration's socket appears
last and goes first: kubelet calls only a driver that answers. Its own exit with 1 means that kubelet would not have it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from importlib import metadata
from pathlib import Path

from kubernetes.client.configuration import Configuration
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.incluster_config import load_incluster_config
from kubernetes.config.kube_config import load_kube_config

from shoal_csi import DRIVER_NAME, health, services
from shoal_csi.cluster import Cluster
from shoal_csi.contents import Place
from shoal_csi.publishing import Publisher

SWEEP_EVERY_S = 600.0
ENDING_S = 10.0

log = logging.getLogger("shoal.csi")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="shoal-csi", description="The CSI driver csi.shoal.dev of one machine.")
    parser.add_argument("--node-id", required=True, help="name of the Kubernetes node")
    parser.add_argument("--endpoint", default="unix:///csi/csi.sock", help="where kubelet calls the driver")
    parser.add_argument("--registration-dir", type=Path, default=Path("/registration"))
    parser.add_argument(
        "--kubelet-socket", default=f"/var/lib/kubelet/plugins/{DRIVER_NAME}/csi.sock",
        help="the endpoint's path as kubelet sees it",
    )  # fmt: skip
    parser.add_argument("--volumes-root", type=Path, default=Path("/run/shoal.dev"))
    parser.add_argument("--health-port", type=int, default=9808, help="of /healthz; 0: none")
    parser.add_argument("--zone", default="", help="of this machine, where the pool has no node on it to tell")
    parser.add_argument("--rack", default="", help="likewise")
    parser.add_argument(
        "--socket-wait-s", type=float, default=2.0,
        help="how long a new volume may wait for the node on this machine to open its socket",
    )  # fmt: skip
    return parser.parse_args(given)


def configuration() -> Configuration:
    """How to reach the API server: as a pod, or by KUBECONFIG."""
    found = Configuration()
    if os.environ.get("KUBECONFIG"):
        load_kube_config(os.environ["KUBECONFIG"], client_configuration=found)
    else:
        load_incluster_config(client_configuration=found)
    return found


def run(chosen: argparse.Namespace) -> int:
    """Serve until told to end."""
    ending = threading.Event()
    status = 0

    def registered(well: bool, error: str) -> None:
        nonlocal status
        if well:
            log.info("kubelet knows %s", DRIVER_NAME)
            return
        log.error("kubelet refused %s: %s", DRIVER_NAME, error)
        status = 1
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    cluster = Cluster(configuration(), os.environ.get("POD_NAMESPACE", "shoal-system"))
    place = Place(chosen.node_id, chosen.zone, chosen.rack)
    publisher = Publisher(cluster, chosen.volumes_root, place, chosen.socket_wait_s)
    publisher.sweep()
    version = metadata.version("shoal")
    driver = services.Door(
        Path("/" + chosen.endpoint.removeprefix("unix:").lstrip("/")),
        {"csi.v1.Identity": services.identity(version), "csi.v1.Node": services.node(publisher, chosen.node_id)},
    )
    registration = services.Door(
        chosen.registration_dir / f"{DRIVER_NAME}-reg.sock",
        {"pluginregistration.Registration": services.registration(chosen.kubelet_socket, registered)},
    )
    with health.served(chosen.health_port, (driver.path, registration.path)):
        log.info("%s %s on %s: at %s", DRIVER_NAME, version, chosen.node_id, driver.path)
        while not ending.wait(SWEEP_EVERY_S):
            publisher.sweep()
        registration.close(0).wait()
        driver.close(ENDING_S).wait()
    cluster.close()
    log.info("%s: ended", DRIVER_NAME)
    return status


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    chosen = arguments()
    try:
        return run(chosen)
    except (ConfigException, OSError) as error:
        sys.stderr.write(f"shoal-csi: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())

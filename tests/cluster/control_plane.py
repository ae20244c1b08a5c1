"""etcd, the API server, the controller manager and, where there are nodes of any kind, the scheduler: plain processes.

Everything that tests want to see soon is quick here unless `stock_timeouts`: a node that is not heard of is NotReady
after 6 s, and its pods move after 3 s more. Requests are in an audit log, one JSON object a line, except those of
Kubernetes' own parts. Webhooks that are given as a service are dialled at a pod's address, because the machine itself
has no kube-proxy.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from tests.cluster.api import Api
from tests.cluster.layout import Layout
from tests.cluster.processes import Processes, wait

PARTS = ("scheduler", "controllers", "apiserver", "etcd")
"""In the order in which they end."""

_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "None",
            "users": [
                *("system:apiserver", "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"),
                *("system:anonymous", "system:unsecured"),
            ],
        },
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
        {"level": "Metadata"},
    ],
}


def start(layout: Layout, processes: Processes, programs: Path) -> None:
    """Starts what does not run, and returns when the API server answers and the controllers have begun."""
    start_etcd(layout, processes, programs)
    start_api(layout, processes, programs)
    start_controllers(layout, processes, programs)
    if layout.nodes:
        start_scheduler(layout, processes, programs)
    with Api.of(layout) as api:
        wait("the default service account", lambda: _controllers_work(api, processes), 60)


def start_controllers(layout: Layout, processes: Processes, programs: Path) -> None:
    quick = [] if layout.settings.stock_timeouts else ["--node-monitor-period=1s", "--node-monitor-grace-period=6s"]
    authority, key = layout.certificate("ca"), layout.key("ca")
    processes.spawn(
        "controllers",
        [
            programs / "kube-controller-manager",
            *(f"--kubeconfig={layout.kubeconfig('controllers')}", "--leader-elect=false", "--secure-port=0"),
            *("--use-service-account-credentials", f"--root-ca-file={authority}"),
            f"--service-account-private-key-file={layout.key('service-accounts')}",
            *(f"--cluster-signing-cert-file={authority}", f"--cluster-signing-key-file={key}"),
            *("--kube-api-qps=500", "--kube-api-burst=1000", *quick),
        ],
    )


def restart(layout: Layout, processes: Processes, programs: Path) -> None:
    """After `stop_api`: the API server, and the controllers anew, as where they lose their lease: those that were
    refused for a moment, while the API server had no roles yet, would wait for minutes."""
    start_api(layout, processes, programs)
    processes.stop("controllers", signal.SIGKILL)
    start_controllers(layout, processes, programs)


def start_scheduler(layout: Layout, processes: Processes, programs: Path) -> None:
    processes.spawn(
        "scheduler",
        [
            programs / "kube-scheduler",
            *(f"--kubeconfig={layout.kubeconfig('scheduler')}", "--leader-elect=false", "--secure-port=0"),
            *("--kube-api-qps=500", "--kube-api-burst=1000"),
        ],
    )


def start_etcd(layout: Layout, processes: Processes, programs: Path) -> None:
    processes.spawn(
        "etcd",
        [
            *(programs / "etcd", "--data-dir", layout.directory / "etcd", "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", layout.etcd_url, "--advertise-client-urls", layout.etcd_url),
            # It has no peers, but insists on an address for them.
            *("--listen-peer-urls", "http://127.0.0.1:0", "--initial-advertise-peer-urls", "http://127.0.0.1:0"),
            *("--initial-cluster", "default=http://127.0.0.1:0"),
        ],
    )


def start_api(layout: Layout, processes: Processes, programs: Path) -> None:
    """Also after `stop_api`: the same address and the same objects."""
    policy = layout.directory / "audit-policy.json"
    policy.write_text(json.dumps(_AUDIT_POLICY))
    seconds = 300 if layout.settings.stock_timeouts else 3
    accounts = layout.key("service-accounts")
    processes.spawn(
        "apiserver",
        [
            *(programs / "kube-apiserver", f"--etcd-servers={layout.etcd_url}"),
            *(f"--bind-address={layout.api_address}", f"--secure-port={layout.settings.api_port}"),
            # An endpoint may not be on loopback, so a control plane alone has none.
            *(
                [f"--advertise-address={layout.api_address}"]
                if layout.nodes
                else ["--endpoint-reconciler-type=none", "--advertise-address=192.0.2.1"]
            ),
            f"--tls-cert-file={layout.certificate('apiserver')}",
            f"--tls-private-key-file={layout.key('apiserver')}",
            f"--client-ca-file={layout.certificate('ca')}",
            *(f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={accounts}"),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-cluster-ip-range={layout.services}",
            *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged"),
            f"--kubelet-client-certificate={layout.certificate('admin')}",
            f"--kubelet-client-key={layout.key('admin')}",
            *("--kubelet-preferred-address-types=InternalIP", "--enable-aggregator-routing=true"),
            f"--default-not-ready-toleration-seconds={seconds}",
            f"--default-unreachable-toleration-seconds={seconds}",
            *(f"--audit-policy-file={policy}", f"--audit-log-path={layout.directory / 'audit.jsonl'}"),
            *("--shutdown-delay-duration=0s", "--profiling=false"),
        ],
    )
    with Api.of(layout) as api:
        wait(f"the API server; see {processes.log('apiserver')}", lambda: _answers(api, processes), 60)


def stop_api(processes: Processes) -> None:
    """At once, as a crash would."""
    processes.stop("apiserver", signal.SIGKILL)


def stop(processes: Processes, *, gently: bool) -> None:
    """`gently`: what etcd holds will be wanted again."""
    for part in PARTS:
        processes.stop(part, signal.SIGTERM if gently and part == "etcd" else signal.SIGKILL)


def audit(layout: Layout) -> list[dict[str, Any]]:
    """Every request so far that the policy keeps."""
    content = (layout.directory / "audit.jsonl").read_text()
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]


def _answers(api: Api, processes: Processes) -> bool:
    for part in "etcd", "apiserver":
        processes.alive(part)
    return api.request("GET", "/readyz")[0] == 200


def _controllers_work(api: Api, processes: Processes) -> bool:
    """Without it the API server refuses every pod."""
    processes.alive("controllers")
    return api.request("GET", "/api/v1/namespaces/default/serviceaccounts/default")[0] == 200

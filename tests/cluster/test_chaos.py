"""Everything that can be killed is killed, under a live training loop that must not notice more than a miss.

One loop runs in a pod through all faults: operator, API server, kubelet, a cache pod, the cache pod beside the loop, a
whole node, a rolling update of the image. Afterwards the same steps are taken in a quiet cluster, and their digests
compared. For each fault the longest stall is printed, and how long after its end the pool's status was true again.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.release import BUCKET, NAMESPACE, ROOT, Release
from tests.support import waiting
from tests.support.kubernetes import load_image

pytestmark = pytest.mark.timeout(900)

POOL = "chaos"
TEAM = "loops"
PATH = "/var/lib/shoal/chaos"
FILES, FILE_BYTES = 96, 256 << 10
STEPS_MAX = 100_000
HOME = 1
"""The node that the loop runs on; it must live."""
TRUTH_S = 30.0
"""Three times what is promised: other work shares the machine. The figure is printed."""


class Loop:
    """The job, and what it has said."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.kubectl = release.kubectl

    def start(self, name: str, steps: int, step_s: float) -> None:
        self.kubectl.apply(json.dumps(_job(name, steps, step_s)))

    def records(self, name: str = "loop") -> list[tuple[int, float, str]]:
        """(step, seconds of the clock, digest), as far as it is."""
        # Between its lines it may say that it reads from elsewhere.
        found = re.findall(r"^(\d+) ([\d.]+) ([0-9a-f]{16})$", self.kubectl.logs(f"job/{name}", TEAM), re.MULTILINE)
        return [(int(step), float(at_s), digest) for step, at_s, digest in found]

    def goes_on(self, steps: int = 20, seconds: float = 60) -> None:
        """Returns when it has taken so many more steps."""
        before = len(self.records())
        waiting.until(lambda: len(self.records()) >= before + steps, "the loop takes further steps", seconds)

    def stall(self, since_s: float) -> float:
        """The longest time between two of its steps from then on."""
        times = [at_s for _, at_s, _ in self.records() if at_s >= since_s - 1]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


@pytest.fixture(scope="module")
def loop(release: Release) -> Iterator[Loop]:
    """Runs from now on, on its node, over a pool of two replicas that holds all."""
    store = release.bucket.store(BUCKET)
    for number in range(FILES):
        store.put(f"loop/{number:03}.bin", os.urandom(FILE_BYTES))
    load_image(release.cluster, "shoal-trainer", ROOT, ROOT / "images/trainer/Dockerfile")
    for node in release.cluster.layout.nodes:
        release.cluster.nodes.add_disk(node, PATH, "512M")
    kubectl = release.kubectl
    kubectl.run("create", "namespace", TEAM)
    kubectl.run("label", "namespace", TEAM, "pod-security.kubernetes.io/enforce=restricted")
    for manifest in (
        release.pool(
            POOL, replicas=2, nvme=[{"path": PATH, "capacity": "192Mi"}],
            sharedMemory={"namespaces": [TEAM]}, ports={"data": 7450, "control": 7451},
        ),
        release.secret(TEAM), release.dataset(TEAM, "loop", POOL, "loop/", eviction="Epoch"), *_rights(),
    ):  # fmt: skip
        kubectl.apply(json.dumps(manifest))
    program = (ROOT / "tests/cluster/loop.py").read_text()
    kubectl.apply(json.dumps(_named("v1", "ConfigMap", "program", data={"loop.py": program})))
    release.ready("dataset", "loop", TEAM, 90)
    kubectl.apply(json.dumps(_named("shoal.dev/v1alpha1", "Preload", "loop", spec={"dataset": "loop"})))
    kubectl.wait("preload", "loop", "condition=Complete", TEAM, 120)
    made = Loop(release)
    made.start("loop", STEPS_MAX, 0.05)
    waiting.until(lambda: kubectl.items("pod", TEAM, "job-name=loop")[0]["status"]["phase"] == "Running", "it runs", 90)
    waiting.until(lambda: len(made.records()) > 20, "the loop is under way", 90)
    yield made
    kubectl.delete("cachepool", POOL, wait=False)


def _operators(release: Release) -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in release.kubectl.items("pod", NAMESPACE, "app.kubernetes.io/component=operator")
    ]


def _cache_pod(release: Release, node: int) -> dict[str, Any]:
    return release.kubectl.items("pod", NAMESPACE, f"shoal.dev/pool={POOL}", f"spec.nodeName=node-{node}")[0]


def _true_again(release: Release) -> float:
    """How long until the status says what is: all nodes ready, nothing under way."""
    begun = time.monotonic()

    def is_true() -> bool:
        pool = release.kubectl.find("cachepool", POOL)
        if pool is None or pool["status"].get("nodes") != "3/3":
            return False
        held = {each["type"]: each["status"] for each in pool["status"]["conditions"]}
        return held["Ready"] == "True" and held["Reconciling"] == "False"

    waiting.until(is_true, "the pool's status is true again", TRUTH_S)
    return time.monotonic() - begun


def kill_the_operator(release: Release) -> Callable[[], None]:
    for name in _operators(release):
        release.kubectl.run("-n", NAMESPACE, "delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
    return lambda: (
        release.kubectl.run("-n", NAMESPACE, "rollout", "status", "deployment/shoal-operator", "--timeout=60s") and None
    )


def stop_the_api_server(release: Release) -> Callable[[], None]:
    release.cluster.stop_api()
    return release.cluster.start_api


def stop_the_kubelet(release: Release) -> Callable[[], None]:
    release.cluster.nodes.stop_kubelet(2)
    release.cluster.wait_ready(2, ready=False)

    def start() -> None:
        release.cluster.nodes.start_kubelet(2)
        release.cluster.wait_ready(2)

    return start


def crash_a_node(release: Release) -> Callable[[], None]:
    release.cluster.crash(3)
    release.cluster.wait_ready(3, ready=False)

    def boot() -> None:
        release.cluster.boot(3)
        release.cluster.wait_ready(3)

    return boot


def delete_a_cache_pod(release: Release) -> Callable[[], None]:
    name = _cache_pod(release, 2)["metadata"]["name"]
    release.kubectl.run("-n", NAMESPACE, "delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
    return lambda: None


def delete_the_cache_pod_beside_it(release: Release) -> Callable[[], None]:
    name = _cache_pod(release, HOME)["metadata"]["name"]
    release.kubectl.run("-n", NAMESPACE, "delete", "pod", name, "--wait=false")
    return lambda: None


@pytest.mark.parametrize(
    "fault",
    [
        kill_the_operator,
        stop_the_api_server,
        stop_the_kubelet,
        delete_a_cache_pod,
        delete_the_cache_pod_beside_it,
        crash_a_node,
    ],
    ids=lambda fault: fault.__name__.replace("_", " "),
)
def test_the_loop_goes_on(loop: Loop, fault: Callable[[Release], Callable[[], None]]) -> None:
    release, begun_s = loop.release, time.time()
    undo = fault(release)
    if fault is not stop_the_api_server:  # without it nobody can read the loop's lines
        loop.goes_on()
    undo()
    truth_s = _true_again(release)
    loop.goes_on()
    print(f"\n{fault.__name__}: longest stall {loop.stall(begun_s):.2f} s, status true again after {truth_s:.1f} s")


def test_a_rolling_update_keeps_the_loop_running_and_the_bytes_warm(loop: Loop) -> None:
    """Warm is what need not be asked of the bucket again."""
    release, begun_s = loop.release, time.time()
    newer = release.image.replace(":test", ":newer")
    for node in release.cluster.layout.nodes:
        release.cluster.run_in(node, "ctr", "-n", "k8s.io", "images", "tag", "--force", release.image, newer)
    asked = _bytes_asked_of_the_bucket(release)
    release.kubectl.patch("cachepool", POOL, {"spec": {"image": newer}})

    def updated(pool: dict[str, Any]) -> bool:
        status = pool["status"]
        return status.get("updatedNodes") == 3 and status.get("image") == newer and status.get("nodes") == "3/3"

    release.kubectl.until("cachepool", POOL, updated, seconds=180)
    truth_s = _true_again(release)
    loop.goes_on(3 * FILES // 4)  # epochs enough to have read every file from the new nodes
    cold = (_bytes_asked_of_the_bucket(release) - asked) / (FILES * FILE_BYTES)
    release.kubectl.until("dataset", "loop", lambda seen: seen["status"].get("cachedPercent") == "100%", TEAM, 60)
    print(
        f"\nrolling update: {time.time() - begun_s:.0f} s, longest stall {loop.stall(begun_s):.2f} s, "
        f"{1 - cold:.0%} of the bytes stayed warm, status true again after {truth_s:.1f} s"
    )
    assert cold <= 0.1


def _bytes_asked_of_the_bucket(release: Release) -> int:
    return FILE_BYTES * sum(
        request.operation == "GetObject" and request.key.startswith("loop/") for request in release.bucket.requests()
    )


def test_every_byte_was_what_a_quiet_run_reads(loop: Loop) -> None:
    seen = loop.records()
    loop.kubectl.delete("job", "loop", TEAM, wait=False)
    assert [step for step, _, _ in seen] == list(range(1, len(seen) + 1)), "it never began anew"
    loop.start("quiet", len(seen), 0.0)
    loop.kubectl.wait("job", "quiet", "condition=Complete", TEAM, 300)
    assert [digest for _, _, digest in loop.records("quiet")] == [digest for _, _, digest in seen]


def _named(api_version: str, kind: str, name: str, **fields: object) -> dict[str, object]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": TEAM}, **fields}


def _rights() -> list[dict[str, object]]:
    """The pool may read the secret, and pods of the namespace use its data sets."""
    rbac = "rbac.authorization.k8s.io"
    found: list[dict[str, object]] = []
    for name, rule, subject in (
        ("secret", {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s3"], "verbs": ["get"]},
         {"kind": "ServiceAccount", "name": f"shoal-{POOL}", "namespace": NAMESPACE}),
        ("use", {"apiGroups": ["shoal.dev"], "resources": ["datasets"], "verbs": ["use"]},
         {"kind": "ServiceAccount", "name": "default", "namespace": TEAM}),
    ):  # fmt: skip
        found.append(_named(f"{rbac}/v1", "Role", name, rules=[rule]))
        reference = {"apiGroup": rbac, "kind": "Role", "name": name}
        found.append(_named(f"{rbac}/v1", "RoleBinding", name, roleRef=reference, subjects=[subject]))
    return found


def _job(name: str, steps: int, step_s: float) -> dict[str, object]:
    container = {
        "name": "loop",
        "image": "docker.io/local/shoal-trainer:test",
        "command": ["python", "/loop/loop.py", "--steps", str(steps), "--step-s", str(step_s)],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "shoal", "mountPath": "/run/shoal", "readOnly": True},
            {"name": "program", "mountPath": "/loop", "readOnly": True},
        ],
    }
    volumes = [
        {
            "name": "shoal",
            "csi": {"driver": "csi.shoal.dev", "readOnly": True, "volumeAttributes": {"dataset": "loop"}},
        },
        {"name": "program", "configMap": {"name": "program"}},
    ]
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "nodeSelector": {"kubernetes.io/hostname": f"node-{HOME}"},
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes,
    }
    return _named("batch/v1", "Job", name, spec={"backoffLimit": 0, "template": {"spec": pod}})

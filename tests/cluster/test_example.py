"""From nothing to a training loss: the example, as its README says, with a bucket of real images."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal.demo import digits
from tests.cluster.release import BUCKET, EXAMPLE, NAMESPACE, ROOT, Release
from tests.support.kubernetes import load_image

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def trained(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The three commands; the job has ended when this returns."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    digits.write(folder)
    files = sorted(folder.rglob("*.png"))
    store = release.bucket.store(BUCKET)

    def put(file: Path) -> None:
        store.put(f"images/{file.parent.name}/{file.name}", file.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, files))
    load_image(release.cluster, "shoal-trainer", ROOT, ROOT / "images/trainer/Dockerfile")
    release.kubectl.apply(release.example("pool.yaml", "dataset.yaml", "preload.yaml", "job.yaml"))
    release.kubectl.wait("job", "train", "condition=Complete", "team-a", 240)
    return release


def test_the_job_trains_from_the_cache(trained: Release) -> None:
    said = trained.kubectl.logs("job/train", "team-a")
    losses = [float(found) for found in re.findall(r"loss ([0-9.]+)", said)]
    assert len(losses) == 5 and losses[-1] < losses[0] / 4, said
    assert f"{digits.COUNT:,} images in 10 classes" in said
    assert "shared memory" in said, "the pod maps the memory of the node beside it, as the pool allows"
    print(said)


def test_what_kubectl_shows_is_true(trained: Release) -> None:
    kubectl = trained.kubectl
    kubectl.wait("preload", "images", "condition=Complete", "team-a", 60)
    preload = kubectl.get("preload", "images", "team-a")["status"]
    size = sum(meta["size"] for page in trained.bucket.store(BUCKET).list("images/") for meta in page)
    assert (preload["objectsDone"], preload["objectsFailed"]) == (digits.COUNT, 0)
    assert preload["bytesVerified"] == preload["bytesTotal"] == size
    dataset = kubectl.until("dataset", "images", lambda seen: seen["status"].get("cachedPercent") == "100%", "team-a")
    assert (dataset["status"]["objects"], dataset["status"]["bytes"]) == (digits.COUNT, size)
    pool = kubectl.get("cachepool", "main")["status"]
    assert (pool["nodes"], pool["nodesReady"], pool["nodesTotal"]) == ("3/3", 3, 3)
    table = kubectl.run("get", "shoal", "--all-namespaces")
    assert "<none>" not in table and "3/3" in table and "100%" in table, table


def test_the_bucket_was_read_once(trained: Release) -> None:
    gets = [request.key for request in trained.bucket.requests() if request.operation == "GetObject"]
    gets = [key for key in gets if key.startswith("images/")]
    assert len(gets) == len(set(gets)) == digits.COUNT, (
        "nobody asked twice for any object, in the preload or in five epochs"
    )


def test_the_pod_had_no_privileges(trained: Release) -> None:
    """The namespace enforces `restricted`, so the API server has judged; and the example says so itself."""
    level = trained.kubectl.get("namespace", "team-a")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "restricted"
    pod = trained.kubectl.items("pod", "team-a", "job-name=train")[0]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["shoal"]


def test_helm_test_passes(trained: Release) -> None:
    trained.helm("test", "shoal", "--namespace", NAMESPACE, "--timeout", "90s")


def test_the_example_is_what_was_applied() -> None:
    assert {file.name for file in EXAMPLE.glob("*.yaml")} == {"pool.yaml", "dataset.yaml", "preload.yaml", "job.yaml"}

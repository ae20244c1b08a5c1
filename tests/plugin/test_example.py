"""What examples/04-cluster grants is what the plugin prints, and the API server takes the whole of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.plugin.plugin import Plugin

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "04-cluster"


def written(file: str) -> list[dict[str, Any]]:
    found = yaml.safe_load_all((EXAMPLE / file).read_text())
    return [each for each in found if each["kind"] in ("Role", "RoleBinding")]


def test_the_pool_is_granted_the_secret(plugin: Plugin) -> None:
    words = ("grant", "dataset", "images", "-n", "team-a", "--secret", "images-s3", "--pool", "main")
    assert plugin.good(*words).yaml() == written("dataset.yaml")


def test_the_job_is_granted_the_data_set(plugin: Plugin) -> None:
    assert plugin.good("grant", "use", "images", "-n", "team-a", "--to", "team-a/train").yaml() == written("job.yaml")


def test_the_api_server_takes_it(plugin: Plugin) -> None:
    kubectl = plugin.cluster.kubectl
    # As the example has it, and in words: a pod that `restricted` forbids is a warning on the Job.
    namespace = next(yaml.safe_load_all((EXAMPLE / "dataset.yaml").read_text()))
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/warn"] = "restricted"
    kubectl.apply(yaml.safe_dump(namespace))
    said = kubectl.run("apply", "--dry-run=server", "-f", EXAMPLE)
    assert said.count("(server dry run)") == 11 and "Warning" not in said, said

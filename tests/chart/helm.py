"""The real helm, and this chart as it renders it."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries, processes

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts/shoal"
PREVIOUS = Path(__file__).with_name("previous")
VALUES = Path(__file__).with_name("values")
GOLDEN = Path(__file__).with_name("golden")
NAMESPACE = "shoal-system"


class Helm:
    """helm, told where its cluster is; without one it can only render."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        self._program = binaries.folder("helm") / "helm"
        self._kubeconfig = kubeconfig or Path(os.devnull)

    def run(self, *argv: object, check: bool = True) -> str:
        """What it printed, on both outputs."""
        return processes.run(self._program, "--kubeconfig", self._kubeconfig, *argv, check=check)

    def render(self, *argv: object) -> str:
        return self.run("template", "shoal", CHART, "--namespace", NAMESPACE, *argv)


@functools.cache
def rendered(values: str) -> tuple[dict[str, Any], ...]:
    """All objects, with one of the value sets here."""
    text = Helm().render("--values", VALUES / f"{values}.yaml")
    return tuple(document for document in yaml.safe_load_all(text) if document)


def one(values: str, kind: str, name: str) -> dict[str, Any]:
    found = [each for each in rendered(values) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def every(values: str, kind: str) -> list[dict[str, Any]]:
    return [each for each in rendered(values) if each["kind"] == kind]

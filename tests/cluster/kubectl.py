"""The real kubectl, for tests: `kubectl.apply(text)`, `kubectl.get("pod", "a", "team")`, `kubectl.run("drain", ...)`.

What fails is a ClusterError that holds what kubectl said. `namespace()` gives a fresh one: tests of one cluster keep
out of each other's way by namespaces, not by clusters.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster import processes


class Kubectl:
    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self.program = program
        self.kubeconfig = kubeconfig

    def run(self, *argv: object, text: str | None = None, check: bool = True, timeout_s: float = 120) -> str:
        """What it printed, on both outputs."""
        words = ("--kubeconfig", self.kubeconfig, *argv)
        return processes.run(self.program, *words, text=text, check=check, timeout_s=timeout_s)

    def apply(self, text: str | Path, namespace: str = "", *, check: bool = True) -> str:
        """Applies manifests, given as YAML or as a file or folder."""
        place = ("-f", text) if isinstance(text, Path) else ("-f", "-")
        return self.run(*_in(namespace), "apply", *place, text=None if isinstance(text, Path) else text, check=check)

    def get(self, kind: str, name: str, namespace: str = "") -> dict[str, Any]:
        return json.loads(self.run(*_in(namespace), "get", kind, name, "-o", "json"))

    def find(self, kind: str, name: str, namespace: str = "") -> dict[str, Any] | None:
        """As `get`, but None where there is no such object."""
        answer = self.run(*_in(namespace), "get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(answer) if answer.strip() else None

    def items(self, kind: str, namespace: str = "", selector: str = "", fields: str = "") -> list[dict[str, Any]]:
        """All of a kind, in one namespace or, without one, in all."""
        where = _in(namespace) or ("--all-namespaces",)
        narrow = (f"--selector={selector}", f"--field-selector={fields}")
        return json.loads(self.run("get", kind, *where, *narrow, "-o", "json"))["items"]

    def delete(self, kind: str, name: str, namespace: str = "", *, wait: bool = True) -> None:
        self.run(*_in(namespace), "delete", kind, name, "--ignore-not-found", f"--wait={str(wait).lower()}")

    def patch(self, kind: str, name: str, change: object, namespace: str = "", subresource: str = "") -> None:
        """A JSON merge patch."""
        part = (f"--subresource={subresource}",) if subresource else ()
        self.run(*_in(namespace), "patch", kind, name, "--type=merge", *part, "-p", json.dumps(change))

    def wait(self, kind: str, name: str, condition: str, namespace: str = "", seconds: float = 60) -> None:
        """`kubectl wait`: condition is "condition=Ready", "delete", "jsonpath={.status.phase}=Running", ..."""
        words = ("wait", f"--for={condition}", f"{kind}/{name}", f"--timeout={seconds:g}s")
        self.run(*_in(namespace), *words, timeout_s=seconds + 30)

    def until(
        self,
        kind: str,
        name: str,
        true: Callable[[dict[str, Any]], object],
        namespace: str = "",
        seconds: float = 60,
    ) -> dict[str, Any]:
        """The object, as soon as it is there and `true` of it; AssertionError with what it was last otherwise."""
        last: dict[str, Any] | None = None

        def look() -> bool:
            nonlocal last
            last = self.find(kind, name, namespace)
            return last is not None and bool(true(last))

        try:
            processes.wait(f"{kind} {name}", look, seconds, 0.2)
        except processes.ClusterError as error:
            raise AssertionError(f"{error}; it is {json.dumps(last, indent=1)}") from error
        assert last is not None
        return last

    def logs(self, pod: str, namespace: str = "", *argv: object) -> str:
        return self.run(*_in(namespace), "logs", pod, *argv)

    def namespace(self, prefix: str = "test") -> str:
        """A new namespace that can hold pods at once."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self.run("create", "namespace", name)
        processes.wait(f"service account of {name}", lambda: self.find("serviceaccount", "default", name), 40)
        return name


def _in(namespace: str) -> tuple[str, ...]:
    return ("--namespace", namespace) if namespace else ()

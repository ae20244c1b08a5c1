"""kubectl, as the way to the cluster: raw reads of the API, changes, and commands inside pods.

We are its plugin, so it is there; its contexts, credentials, proxies and impersonation hold for us without a word. A
call costs a process, about 0.1 s; importing a client library alone costs 0.8 s.
What kubectl complains about becomes a `Refused` with the API server's reason (NotFound, Forbidden, ...), one line.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urlencode

from shoal_core.errors import ConfigError, ShoalError

REQUEST_S = 30
_FROM_SERVER = re.compile(r"^(?:error: )?Error from server(?: \((?P<reason>\w+)\))?: (?P<text>.*)$", re.DOTALL)


class Refused(ShoalError):
    """What kubectl or the API server said; `reason` is the server's word, empty where it was not asked."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class Kubectl:
    """One cluster, as one user."""

    def __init__(
        self, *, namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None
    ) -> None:
        program = shutil.which("kubectl")
        if program is None:
            raise ConfigError("kubectl: not found on PATH; kubectl shoal reaches the cluster through it")
        self._namespace = namespace
        flags = {"--kubeconfig": kubeconfig, "--context": context}
        self.words = (program, *(f"{name}={value}" for name, value in flags.items() if value))

    @staticmethod
    def of(arguments: argparse.Namespace) -> Kubectl:
        """As the command line says."""
        return Kubectl(
            namespace=arguments.namespace, context=arguments.context, kubeconfig=arguments.kubeconfig
        )  # fmt: skip

    @property
    def namespace(self) -> str:
        """The one that was given, else the context's own."""
        if self._namespace is None:
            try:
                found = self.run("config", "view", "--minify", "--output=jsonpath={..namespace}")
            except Refused:  # no context at all, as in a pod
                found = ""
            self._namespace = found.strip() or "default"
        return self._namespace

    def run(self, *words: str, text: str | None = None) -> str:
        """What it printed."""
        # An input that ends at once: a kubectl that asks for a password would wait where nobody sees the question.
        done = subprocess.run([*self.words, *words], input=text or "", capture_output=True, text=True, check=False)
        if done.returncode:
            raise _refused(done.stderr or done.stdout)
        return done.stdout

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """An object, or a list, at a path of the API."""
        question = "?" + urlencode(query) if query else ""
        return json.loads(self.run("get", f"--request-timeout={REQUEST_S}s", "--raw", path + question))

    def find(self, path: str) -> dict[str, Any] | None:
        """None where there is nothing."""
        try:
            return self.get(path)
        except Refused as refused:
            if refused.reason != "NotFound":
                raise
            return None

    def create(self, *objects: dict[str, Any]) -> list[dict[str, Any]]:
        """As the API server made them."""
        given: Any = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        printed = self.run("create", "--filename=-", "--output=json", text=json.dumps(given)).lstrip()
        made: list[dict[str, Any]] = []
        while printed:  # one document after the other
            found, end = json.JSONDecoder().raw_decode(printed)
            made.append(found)
            printed = printed[end:].lstrip()
        return made

    def patch(self, kind: str, name: str, changes: Sequence[dict[str, Any]]) -> None:
        """A JSON patch of an object that is in no namespace."""
        self.run("patch", kind, name, "--type=json", f"--patch={json.dumps(changes)}")

    # In pods

    def exec_words(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> list[str]:
        place = (f"--namespace={namespace}", pod, f"--container={container}")
        return [*self.words, "exec", *place, "--", *command]

    def exec(
        self, namespace: str, pod: str, container: str, command: Sequence[str], text: str = ""
    ) -> tuple[int, str, str]:
        """(exit code, output, errors) of a command in a pod; Refused when it could not be run."""
        words = self.exec_words(namespace, pod, container, command)
        if text:
            words.insert(words.index("exec") + 1, "--stdin")
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
        errors, _, code = done.stderr.rstrip().rpartition("command terminated with exit code ")
        if done.returncode and not code.isdigit():
            raise _refused(done.stderr)
        return done.returncode, done.stdout, errors if code.isdigit() and done.returncode else done.stderr

    @contextmanager
    def exec_lines(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Iterator[IO[str]]:
        """The lines of a command that goes on until the context is left."""
        words = self.exec_words(namespace, pod, container, command)
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield process.stdout
            finally:
                process.terminate()


def _refused(said: str) -> Refused:
    lines = [line for line in said.strip().splitlines() if line]
    text = " ".join(lines[-1:]) if len(lines) > 1 and not lines[0].startswith("Error") else " ".join(lines)
    found = _FROM_SERVER.match(text)
    if found is None:
        return Refused(text.removeprefix("error: ") or "kubectl failed without a word")
    return Refused(found["text"], found["reason"] or "")

"""The plugin as kubectl runs it: a process, with the real kubectl on its PATH and somebody's kubeconfig."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.cluster.cluster import Cluster


class Done(NamedTuple):
    code: int
    out: str
    errors: str

    def json(self) -> Any:
        return json.loads(self.out)

    def yaml(self) -> list[Any]:
        return list(yaml.safe_load_all(self.out))


class Watching:
    """A command that goes on."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text = ""
        self.errors = ""
        self._readers = [
            threading.Thread(target=self._read, args=(process.stdout, "text")),
            threading.Thread(target=self._read, args=(process.stderr, "errors")),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, name: str) -> None:
        for line in stream:
            setattr(self, name, getattr(self, name) + line)

    def join(self) -> int:
        for reader in self._readers:
            reader.join()
        return self.process.wait(30)


class Plugin:
    def __init__(self, cluster: Cluster, kubeconfig: Path | None = None) -> None:
        self.cluster = cluster
        self._kubeconfig = kubeconfig or cluster.kubeconfig

    def as_user(self, name: str, *groups: str) -> Plugin:
        return Plugin(self.cluster, self.cluster.kubeconfig_of(name, *groups))

    @property
    def environment(self) -> dict[str, str]:
        programs = self.cluster.kubectl.program.parent
        return {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig),
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def words(self, *argv: object) -> list[str]:
        return [sys.executable, "-m", "kubectl_shoal", *map(str, argv)]

    def run(self, *argv: object, text: str | None = None) -> Done:
        done = subprocess.run(
            self.words(*argv),
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def good(self, *argv: object) -> Done:
        """It must work, and have nothing to remark."""
        done = self.run(*argv)
        assert (done.code, done.errors) == (0, ""), done
        return done

    @contextlib.contextmanager
    def start(self, *argv: object) -> Iterator[Watching]:
        """A command that is ended as a user ends it."""
        process = subprocess.Popen(
            self.words(*argv), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with process:
            watching = Watching(process)
            try:
                yield watching
            finally:
                if process.poll() is None:
                    process.send_signal(2)
                watching.join()

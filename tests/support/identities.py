"""Identities for tests: the key of a pool, tokens signed with it, and a directory of volumes as a CSI driver keeps it,
and connections that ask for what they should not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal_core import access, verbs
from shoal_core.verbs import get, hello, resolve
from shoal_transport import links
from tests.support import waiting

KEY = bytes(range(32))
POOL = "pool"
NO_DATASETS: Mapping[str, str] = {}


def key_file(directory: Path, key: bytes = KEY) -> Path:
    """The pool's secret, as it is mounted into a node's pod."""
    file = directory / "key"
    file.write_bytes(key)
    return file


def token(
    role: access.Role = "reader",
    *,
    namespace: str = "team-a",
    datasets: Mapping[str, str] = NO_DATASETS,
    lives_s: float = 600,
    key: bytes = KEY,
    pool: str = POOL,
) -> str:
    """Of a pod of that namespace, or of an operator or a peer."""
    expires_s = int(time.time() + lives_s)
    return access.sign(key, access.Claims(pool, role, f"{namespace}/pod", namespace, dict(datasets), expires_s))


class VolumeDirectory:
    """What a CSI driver writes, and what a pod finds at its mount."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        directory.mkdir(parents=True, exist_ok=True)

    def publish(self, volume: str, namespace: str, datasets: Mapping[str, str]) -> Path:
        """Make the volume, or change whose it is; the path of the socket that the node is to make there."""
        mount = self.place(volume) / "mount"
        mount.mkdir(parents=True, exist_ok=True)
        identity = {"who": f"{namespace}/pod", "namespace": namespace, "pod_uid": volume, "datasets": dict(datasets)}
        self.write(volume, json.dumps(identity).encode())
        return mount / "node.sock"

    def write(self, volume: str, content: bytes) -> None:
        """access.json, put in place whole."""
        new = self.place(volume) / "access.json.new"
        new.write_bytes(content)
        os.replace(new, self.place(volume) / "access.json")

    def place(self, volume: str) -> Path:
        return self.path / hashlib.sha256(volume.encode()).hexdigest()[:20]

    def remove(self, volume: str) -> None:
        """As when the pod has gone."""
        shutil.rmtree(self.place(volume))


def access_section(volumes: Path | None = None, key: Path | None = None, **fields: Any) -> dict[str, Any]:
    """[access] of a node's configuration."""
    section: dict[str, Any] = {"pool": POOL, **fields}
    if volumes is not None:
        section["volumes_directory"] = str(volumes)
    if key is not None:
        section["key_file"] = str(key)
    return section


class Asker:
    """One connection that asks a node as it likes, past the client and its caution."""

    def __init__(
        self, address: str, token: str = "", *, role: str = hello.REQUESTS, identity: bytes | None = None
    ) -> None:
        self.identity = identity or os.urandom(16)
        self.channel = links.open_channel(address, waiting.deadline())
        try:
            self.terms: hello.Reply = self.call(hello.KIND, hello.Request(self.identity, role, "test", token))
        except BaseException:
            self.channel.close()
            raise

    def call(self, kind: int, request: Any) -> Any:
        header, body = self.channel.call(kind, verbs.encode(request), waiting.deadline())
        if header.payload_bytes:
            self.payload = self.channel.receive(header.payload_bytes, waiting.deadline())
        return verbs.decode_reply(kind, header, body)

    def resolve(self, *urls: str) -> list[Any]:
        return self.call(resolve.KIND, resolve.Request([resolve.Wanted(url) for url in urls], 10_000)).objects

    def claim(self, url: str, size: int, etag: str = "1") -> resolve.Object:
        """What becomes of a claim; of derived objects there is nothing else."""
        (found,) = self.call(resolve.KIND, resolve.Request([resolve.Wanted(url, size, etag)], 10_000)).objects
        return found

    def read(self, found: resolve.Object, inline: bool = False) -> bytes:
        """Block 0, through the connection; AssertionError when it came by a grant or not at all."""
        request = get.Request([found.fingerprint], [get.Item(0, 0, 0, found.size)], [], 10_000, inline)
        (answer,) = self.call(get.KIND, request).items
        assert isinstance(answer, get.Inline), answer
        return self.payload

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()

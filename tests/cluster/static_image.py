"""An image of one static program, written without any tool: one layer, as `docker save` would lay it out."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(program: Path, reference: str, target: Path) -> None:
    """The program is the entry point."""
    layer = _tar([(program.name, program.read_bytes(), 0o755)])
    config = json.dumps(
        {
            "architecture": _ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    files = [(config_name, config, 0o644), ("layer.tar", layer, 0o644), ("manifest.json", manifest, 0o644)]
    scratch = target.with_suffix(".part")
    scratch.write_bytes(_tar(files))
    scratch.rename(target)


def _tar(files: list[tuple[str, bytes, int]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data, mode in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()

"""Images of pods, built from Dockerfiles without a registry, as files that `Cluster.load` gives to every node.

`build("shoal", context, dockerfile)` makes docker.io/local/shoal:test. The file's name holds the hash of what went in:
the Dockerfile, the arguments, the base images, and of the context what COPY and ADD name. What is there is not built
again; where something changed, buildah goes on from the layers that did not.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.cluster import base_images, packages
from tests.cluster.processes import ClusterError
from tests.cluster.storage import Storage, locked

_KEPT = 3
"""Files of one name; older ones go."""
_EVERYTHING = "."


def reference(name: str) -> str:
    """What a pod names in `image:`; NAME is the last part, with or without a tag."""
    return f"docker.io/local/{name}" + ("" if ":" in name else ":test")


def build(name: str, context: Path, dockerfile: Path, build_args: Mapping[str, str] | None = None) -> Path:
    """The image as a docker-archive. Unavailable where images cannot be built."""
    packages.require()
    arguments = dict(build_args or {})
    stem = name.replace("/", "-").replace(":", "-")
    with locked() as storage:
        target = storage.directory / f"{stem}-{_key(name, context, dockerfile, arguments)}.tar"
        if not target.exists():
            _build(storage, reference(name), context, dockerfile, arguments, target)
            for old in sorted(storage.directory.glob(f"{stem}-{'?' * 12}.tar"), key=_age_s)[_KEPT:]:
                old.unlink()
        target.touch()
        return target


def _build(
    storage: Storage, tag: str, context: Path, dockerfile: Path, arguments: Mapping[str, str], target: Path
) -> None:
    base_images.prepare(storage)
    print(f"building the image {tag}", file=sys.stderr)
    given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    ways = ("--isolation", "chroot", "--pull-never", "--layers", "--quiet")
    storage.buildah("bud", *ways, *given, "--tag", tag, "--file", dockerfile, context)
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    storage.buildah("push", "--quiet", tag, f"docker-archive:{part}:{tag}")
    part.rename(target)


def _key(name: str, context: Path, dockerfile: Path, arguments: Mapping[str, str]) -> str:
    content = hashlib.sha256(json.dumps([name, base_images.key(), dict(sorted(arguments.items()))]).encode())
    text = dockerfile.read_text()
    content.update(text.encode())
    for ignore in context / ".dockerignore", dockerfile.with_name(f"{dockerfile.name}.dockerignore"):
        content.update(ignore.read_bytes() if ignore.exists() else b"")
    for path in _files(context, copied(text)):
        content.update(f"{path}\0{(context / path).stat().st_mode & 0o777}\0".encode())
        content.update(hashlib.sha256((context / path).read_bytes()).digest())
    return content.hexdigest()[:12]


def copied(dockerfile: str) -> list[str]:
    """The paths of the context that a Dockerfile's COPY and ADD name; ["."] where one is a pattern or a variable."""
    found: list[str] = []
    for line in re.sub(r"\\\n", " ", dockerfile).splitlines():
        words = shlex.split(line, comments=True) if re.match(r"\s*(COPY|ADD)\s", line, re.IGNORECASE) else []
        if any(word.startswith("--from=") for word in words):
            continue
        found += [word for word in words[1:-1] if not word.startswith("--")]
    if any(re.search(r"[$*?\[]", path) for path in found):
        return [_EVERYTHING]
    return sorted({path.strip("/") or _EVERYTHING for path in found})


def _files(context: Path, paths: Iterable[str]) -> list[str]:
    """Relative to the context, in order: what git knows or would know of, or everything outside a checkout."""
    named = list(paths)
    if not named:
        return []
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *named],
        cwd=context,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        return sorted({path for path in listed.stdout.split("\0") if path and (context / path).is_file()})
    found: set[Path] = set()
    for path in named:
        if not (context / path).exists():
            raise ClusterError(f"{context / path}: the Dockerfile copies it, and it is not there")
        found.update([context / path, *(context / path).rglob("*")])
    return sorted(str(path.relative_to(context)) for path in found if path.is_file())


def _age_s(file: Path) -> float:
    return time.time() - file.stat().st_mtime

"""Stand-ins for the public base images, from the machine's own Debian mirror and Python: no registry is asked.

    docker.io/library/debian:bookworm-slim   debootstrap's smallest system
    docker.io/library/python:3.12-slim       the same with a Python 3.12 below /usr/local

An ordinary Dockerfile builds on them unchanged. What a build needs to reach packages here (certificates, apt's and
pip's settings) is baked in, so that no Dockerfile has to know of it. They are kept in the tools' cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster.processes import Unavailable, run
from tests.cluster.storage import Storage

DEBIAN = "docker.io/library/debian:bookworm-slim"
PYTHON = "docker.io/library/python:3.12-slim"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_RECIPE = 1
"""Counts up when what is made here changes."""
_RELEASE = "bookworm"
_PACKAGES = (
    *("ca-certificates", "libssl3", "libffi8", "libsqlite3-0", "zlib1g", "libbz2-1.0", "liblzma5"),
    *("libreadline8", "libncursesw6"),  # what a Python of its own is linked with
)
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
_PIP_VARIABLES = {"PIP_INDEX_URL": "index-url", "PIP_EXTRA_INDEX_URL": "extra-index-url"}


def key() -> str:
    """Changes with what the base images are made of."""
    made_by = hashlib.sha256(f"{_RECIPE} {_RELEASE} {_PACKAGES} {_PATH}\n{_pip_configuration()}".encode())
    if _CERTIFICATES.exists():
        made_by.update(_CERTIFICATES.read_bytes())
    return made_by.hexdigest()[:12]


def prepare(storage: Storage) -> None:
    """Makes them where they are missing or old; a minute or three."""
    mark = storage.directory / "base-images"
    if mark.exists() and mark.read_text() == key() and all(storage.has(name) for name in (DEBIAN, PYTHON)):
        return
    prefix = _python_prefix()
    print("making the base images of the tests' cluster, once for this machine (1-3 minutes)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=storage.directory, prefix="base-") as scratch:
        root = Path(scratch) / "root"
        _debian(root, storage.directory / "packages")
        _commit(storage, DEBIAN, root, "bash")
        tree = Path(scratch) / "python"
        _python(prefix, tree)
        run("cp", "-a", f"{tree}/.", root)
        run("chroot", root, "ldconfig")
        run("chroot", root, "/usr/local/bin/python3", "-c", "import ssl, sqlite3, ctypes, zlib, bz2, lzma")
        _commit(storage, PYTHON, root, "python3")
    mark.write_text(key())


def _debian(root: Path, packages: Path) -> None:
    sources = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").splitlines()
    mirror = next((uri for uri in sources if re.search(r"/debian/?$", uri)), None)
    if mirror is None:
        raise Unavailable("no base images for pods: apt-get knows no Debian mirror here")
    packages.mkdir(exist_ok=True)
    words = ("--variant=minbase", f"--include={','.join(_PACKAGES)}", f"--cache-dir={packages}")
    run("debootstrap", *words, _RELEASE, root, mirror, timeout_s=900)
    for place in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / place)
        (root / place).mkdir()
    if _CERTIFICATES.exists():
        shutil.copy(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"))
    (root / "etc/pip.conf").write_text(_pip_configuration())
    lists = Path("/etc/apt/sources.list.d/debian.sources")
    if lists.exists():
        shutil.copy(lists, root / "etc/apt/sources.list.d")
        (root / "etc/apt/sources.list").unlink(missing_ok=True)
    for file in Path("/etc/apt/apt.conf.d").glob("99*"):
        shutil.copy(file, root / "etc/apt/apt.conf.d")


def _pip_configuration() -> str:
    lines = ["[global]", "timeout = 180", "disable-pip-version-check = true"]
    if _CERTIFICATES.exists():
        lines.append(f"cert = {_CERTIFICATES}")
    lines += [f"{name} = {os.environ[given]}" for given, name in _PIP_VARIABLES.items() if os.environ.get(given)]
    return "\n".join(lines) + "\n"


def _python_prefix() -> Path:
    """Of a Python 3.12 that does not belong to a distribution, so that its folder can be copied."""
    candidates = [shutil.which("python3.12") or ""]
    pyenv = subprocess.run(["sh", "-c", "pyenv root"], capture_output=True, text=True, check=False).stdout.strip()
    if pyenv:
        candidates += [str(path / "bin" / "python3.12") for path in sorted(Path(pyenv, "versions").glob("3.12*"))]
    for candidate in filter(None, candidates):
        asked = "import sys; print(sys.base_prefix)"
        done = subprocess.run([candidate, "-c", asked], capture_output=True, text=True, check=False)
        prefix = Path(done.stdout.strip() or "/usr")
        if done.returncode == 0 and prefix != Path("/usr"):
            return prefix
    raise Unavailable("no base images for pods: there is no Python 3.12 of its own here (pyenv install 3.12)")


def _python(prefix: Path, tree: Path) -> None:
    """A copy below usr/local without what an image does not need: interpreters find their own folder."""
    target = tree / "usr/local"
    target.mkdir(parents=True)
    run("cp", "-a", *(prefix / name for name in ("bin", "lib", "include")), target)
    unwanted = ("__pycache__", "test", "tests", "idle_test")
    for path in sorted(target.rglob("*"), key=lambda path: -len(path.parts)):
        if path.is_dir() and (path.name in unwanted or path.name.startswith("config-3")):
            shutil.rmtree(path)
        elif path.suffix == ".a":
            path.unlink()
    for path in (target / "lib/python3.12/site-packages").iterdir():
        if not path.name.startswith("pip"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (target / "bin").iterdir():
        if not path.name.startswith("python3"):
            path.unlink()
    for name in "pip", "pip3":
        (target / "bin" / name).write_text('#!/bin/sh\nexec /usr/local/bin/python3 -m pip "$@"\n')
        (target / "bin" / name).chmod(0o755)
    (target / "bin/python").symlink_to("python3")


def _commit(storage: Storage, reference: str, root: Path, command: str) -> None:
    container = storage.buildah("from", "scratch").strip()
    try:
        storage.buildah("copy", "--quiet", container, root, "/")
        settings = ("--env", f"PATH={_PATH}", "--env", "LANG=C.UTF-8", "--cmd", command)
        storage.buildah("config", *settings, container)
        storage.buildah("commit", "--quiet", container, reference)
    finally:
        storage.buildah("rm", container)

"""The embedded node: one per user and host, started by whoever needs it first, shared by all, detached from each.

Its socket and lock lie in a private runtime directory, its NVMe tier in the user's cache directory, so that a second
run is warm even after the node has gone. Who finds no node takes the start lock, looks again, and starts one; the
others wait at the lock: eight processes that connect at once get one node. The node takes a lock of its own on its
disk directory, so a second one could not start in any case. It ends LINGER_S_DEFAULT after its last client left.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal_core import environment, limits
from shoal_core.config import parse
from shoal_core.errors import ConfigError, DeadlineExceeded, ShoalError
from shoal_transport import file_lock, unix

if TYPE_CHECKING:
    from shoal.client import Client

log = logging.getLogger("shoal")

_DRAM_FRACTION = 0.25
_DRAM_MAX_BYTES = 8 * limits.GIB
_NVME_MAX_BYTES = 64 * limits.GIB
_NVME_FRACTION = 0.25
"""Of what is free in the cache directory when the node starts."""

_POLL_S = 0.01


def runtime_directory() -> Path:
    """Where socket, lock and log are: SHOAL_RUNTIME_DIR, else below XDG_RUNTIME_DIR, else /tmp, for this user only."""
    named = os.environ.get("SHOAL_RUNTIME_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.access(base, os.W_OK):
        return Path(base) / "shoal"
    return Path(tempfile.gettempdir()) / f"shoal-{os.getuid()}"


def cache_directory() -> Path:
    """Where the NVMe tier is: SHOAL_CACHE_DIR, else below XDG_CACHE_HOME, else ~/.cache."""
    named = os.environ.get("SHOAL_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "shoal"


def address() -> str:
    """The embedded node's address, whether it runs or not."""
    return f"unix:{runtime_directory() / 'node.sock'}"


def ensure(deadline: float) -> str:
    """The address of the user's embedded node, started if it does not run. Ends by `deadline`."""
    directory = _private_directory(runtime_directory())
    if _answers():
        return address()
    with (directory / "start.lock").open("w") as lock:
        if not file_lock.take(lock.fileno(), deadline):
            raise DeadlineExceeded("another process is starting the embedded node and does not end")
        if not _answers():
            _start(directory, deadline)
    return address()


def configuration() -> dict[str, Any]:
    """The embedded node's configuration: defaults for this machine, overridden by $XDG_CONFIG_HOME/shoal/node.toml."""
    directory = runtime_directory()
    cache = cache_directory()
    disk = _disk_bytes(cache)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    config: dict[str, Any] = {
        "node_name": f"embedded-{os.getuid()}",
        "doors": {"unix": str(directory / "node.sock")},
        "dram": {"budget_bytes": int(min(memory * _DRAM_FRACTION, _DRAM_MAX_BYTES))},
        "state_directory": str(cache) if disk is not None else None,
        "linger_s": limits.LINGER_S_DEFAULT,
    }
    if disk is not None and disk >= 256 * limits.MIB:
        config["nvme"] = [{"directory": str(cache / "nvme"), "budget_bytes": disk}]
    return _overridden(config)


def warn_if_environment_differs(client: Client) -> None:
    """Say it when the node reads origins with other settings than this process has."""
    terms = client.terms()
    if terms is not None and terms.origin_environment != environment.digest(os.environ):
        log.warning(
            "the embedded node (pid %d) was started with other %s variables than this process has; it reads origins "
            "with its own. `shoal stop` ends it, and the next connect starts one with yours.",
            terms.pid,
            ", ".join(f"{prefix}*" for prefix in environment.PREFIXES),
        )


def _overridden(config: dict[str, Any]) -> dict[str, Any]:
    import tomllib

    base = os.environ.get("XDG_CONFIG_HOME")
    path = (Path(base) if base else Path.home() / ".config") / "shoal" / "node.toml"
    if not path.exists():
        return config
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for name, value in given.items():
        both = isinstance(value, dict) and isinstance(config.get(name), dict)
        config[name] = {**config[name], **value} if both else value
    return config


def _start(directory: Path, deadline: float) -> None:
    if importlib.util.find_spec("uvloop") is None:
        raise ConfigError("an embedded node needs more than this installation has: pip install 'shoal[node]'")
    config = configuration()
    path = directory / "node.json"
    path.write_text(json.dumps(config, indent=1), "utf-8")
    log_path = directory / "node.log"
    with log_path.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal_node", "--config", str(path)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/",
        )  # fmt: skip
    while not _answers():
        if process.poll() is not None:
            with log_path.open("rb") as written:
                written.seek(begin)
                tail = written.read().decode("utf-8", "replace").strip().splitlines()
            raise ConfigError(f"the embedded node did not start: {tail[-1] if tail else f'see {log_path}'}")
        if time.monotonic() >= deadline:
            process.terminate()
            raise DeadlineExceeded(f"the embedded node did not answer in time; see {log_path}")
        time.sleep(_POLL_S)
    # The child outlives us on purpose; without this its end would look like a leak.
    process.returncode = 0
    known = parse(config)
    disk = "no disk"
    if known.nvme:
        disk = f"disk up to {known.nvme[0].budget_bytes / limits.GIB:.1f} GiB in {known.nvme[0].directory}"
    sys.stderr.write(
        f"shoal: embedded node started, pid {process.pid}, socket {directory / 'node.sock'}, "
        f"DRAM up to {known.dram.budget_bytes / limits.GIB:.1f} GiB, {disk}; "
        "stop it: shoal stop\n"
    )


def _answers() -> bool:
    try:
        unix.connect(str(runtime_directory() / "node.sock"), time.monotonic() + 2.0).close()
    except ShoalError:
        return False
    return True


def _private_directory(path: Path) -> Path:
    """Made for this user alone; refused if it is anybody else's, because who owns it owns what we read."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, link = path.stat(), path.lstat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; SHOAL_RUNTIME_DIR can name another directory") from error
    # A link of somebody else's could be turned to another place later.
    if {found.st_uid, link.st_uid} != {os.getuid()} or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{path}: must belong to this user and be closed to others (mode 0700)")
    return path


def _disk_bytes(cache: Path) -> int | None:
    """What the disk tier may take in the cache directory; None where nothing can be kept there."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        size = min(int((shutil.disk_usage(cache).free + _tier_bytes(cache / "nvme")) * _NVME_FRACTION), _NVME_MAX_BYTES)
    except OSError as error:
        log.warning(
            "the embedded node keeps nothing over its end: %s: %s; SHOAL_CACHE_DIR can name another directory",
            cache, error.strerror,
        )  # fmt: skip
        return None
    # In whole GiB, so that other files that come and go rarely change it.
    return size - size % limits.GIB if size > limits.GIB else size


def _tier_bytes(path: Path) -> int:
    """Disk that the tier has already: it counts as free, or the budget would shrink at each start."""
    if not path.is_dir():
        return 0
    return sum(entry.stat().st_blocks * 512 for entry in path.iterdir() if entry.is_file())

"""What this machine offers: Python, packages, sealed memory, huge pages, limits, free memory, clock.

Only what Shoal needs is a failure. Facts that cost speed are warnings; facts that do not matter say so, because people
look there first.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import fcntl
import mmap
import os
import platform
import resource
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from shoal.cli.doctor.check import Check
from shoal_core import limits, units

NEEDED = ("msgspec", "obstore", "rich", "xxhash")
NODE_NEEDS = ("fastapi", "prometheus-client", "uvicorn", "uvloop")
PROCESS_BYTES = 150 * limits.MIB
"""What a node may need beside its budget."""
DESCRIPTORS_WANTED = 1024
F_SEAL_FUTURE_WRITE = 0x10
TIME_ERROR = 5
_TIMEX_BYTES = 256


def checks(values: dict[str, Any] | None) -> Iterator[Check]:
    """`values` are the node's, if it was reached and runs on this machine."""
    yield _python()
    yield _packages()
    yield _sealed_memory()
    yield _huge_pages(values)
    yield from _memory(values)
    yield _memlock()
    yield _descriptors()
    yield _shared_memory_folder()
    yield _clock()


def _python() -> Check:
    version, system = platform.python_version(), f"{platform.system()} {platform.release()}"
    if sys.platform != "linux":
        return Check("system", "fail", system, "Shoal needs Linux; elsewhere use a container or a virtual machine")
    return Check("system", "pass", f"Python {version}, {system}, {platform.machine()}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Check:
    found = {name: _version(name) for name in ("shoal", *NEEDED, *NODE_NEEDS)}
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    missing = [name for name in NEEDED if not found[name]]
    if missing:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", "pip install shoal")
    missing = [name for name in NODE_NEEDS if not found[name]]
    if missing:
        return Check(
            "packages", "warn", f"{shown}; not installed: {', '.join(missing)}",
            "pip install 'shoal[node]', if this machine is to run a node with a control door",
        )  # fmt: skip
    return Check("packages", "pass", shown)


def _sealed_memory() -> Check:
    """What a DRAM segment is: shared memory that the node can write and nobody else, and that nobody can truncate."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
    try:
        descriptor = os.memfd_create("shoal-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            with mmap.mmap(descriptor, mmap.PAGESIZE) as written:
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
                written[:5] = b"shoal"
                with mmap.mmap(descriptor, mmap.PAGESIZE, prot=mmap.PROT_READ) as seen:
                    same = seen[:5] == b"shoal"
            refused = _refused(lambda: os.ftruncate(descriptor, 0)) and _refused(lambda: os.write(descriptor, b"x"))
        finally:
            os.close(descriptor)
    except OSError as error:
        return Check("sealed memory", "fail", f"memfd with seals: {error.strerror}", "Linux 5.1 or newer, not gVisor")
    if not same or not refused:
        return Check("sealed memory", "fail", "the kernel does not keep the seals of a memfd", "Linux 5.1 or newer")
    return Check("sealed memory", "pass", "memfd with seals works")


def _refused(operation: Any) -> bool:
    try:
        operation()
    except PermissionError:
        return True
    return False


def _huge_pages(values: dict[str, Any] | None) -> Check:
    folder = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    try:
        total, free = (int((folder / name).read_text()) for name in ("nr_hugepages", "free_hugepages"))
    except (OSError, ValueError):
        return Check("huge pages", "pass", "none on this system; small pages work, mapping is slower")
    used = sum(segment["bytes"] for segment in (values or {}).get("segments", []) if segment["huge_pages"])
    if used:
        return Check("huge pages", "pass", f"{units.size(used)} of the node's segments are in 2 MiB pages")
    if not total:
        return Check("huge pages", "pass", "none set aside (vm.nr_hugepages=0); small pages work, mapping is slower")
    if values is not None and values.get("segments"):
        return Check(
            "huge pages", "warn", f"{free} of {total} are free, but the node's segments are in small pages",
            "set aside at least the DRAM budget (vm.nr_hugepages), then restart the node",
        )  # fmt: skip
    return Check("huge pages", "pass", f"{free} of {total} free: {units.size(free * 2 * limits.MIB)}")


def _memory(values: dict[str, Any] | None) -> Iterator[Check]:
    available = _available()
    if values is None:
        yield Check("free memory", "pass", f"{units.size(available)} available")
    else:
        budget = values["tiers"]["dram"]["budget_bytes"]
        to_come = max(0, budget - sum(segment["bytes"] for segment in values.get("segments", [])))
        finding = f"{units.size(available)} available; the node may still take {units.size(to_come)} of its budget"
        if to_come > available:
            yield Check("free memory", "warn", finding, "a smaller dram.budget_bytes, or fewer other programs")
        else:
            yield Check("free memory", "pass", finding)
    limit = _group_limit(values["pid"] if values else os.getpid())
    if limit is None:
        yield Check("memory limit", "pass", "no limit by a control group")
    elif values is not None and limit < values["tiers"]["dram"]["budget_bytes"] + PROCESS_BYTES:
        yield Check(
            "memory limit", "fail", f"the node's control group allows {units.size(limit)}, less than its budget "
            f"of {units.size(values['tiers']['dram']['budget_bytes'])} and 150 MiB: it will be killed",
            "raise the limit (in Kubernetes resources.limits.memory), or lower dram.budget_bytes",
        )  # fmt: skip
    else:
        yield Check("memory limit", "pass", f"the control group allows {units.size(limit)}")


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _group_limit(pid: int) -> int | None:
    """The smallest memory limit from the process's control group up to the root; None where there is none."""
    try:
        entries = [line.split(":", 2) for line in Path("/proc", str(pid), "cgroup").read_text().splitlines()]
    except OSError:
        return None
    found: list[int] = []
    for _, controllers, path in entries:
        if controllers == "":
            root, file = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, file = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for place in (root / group, *(root / parent for parent in group.parents), root):
            try:
                found.append(int((place / file).read_text()))
            except (OSError, ValueError):  # not mounted here, or "max"
                continue
    real = [limit for limit in found if limit < 1 << 60]  # v1 says "no limit" as a number close to 2**63
    return min(real, default=None)


def _memlock() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    allowed = "no limit" if soft == resource.RLIM_INFINITY else units.size(soft)
    return Check("locked memory", "pass", f"{allowed}; matters to RDMA only")


def _descriptors() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS_WANTED:
        return Check(
            "open files", "warn", f"limit {soft}", f"ulimit -n {min(hard, 65536)}: a connection needs one each"
        )
    return Check("open files", "pass", "no limit" if soft == resource.RLIM_INFINITY else f"limit {units.number(soft)}")


def _shared_memory_folder() -> Check:
    return Check("/dev/shm", "pass", "not used (segments are memfds), so its size does not matter")


def _clock() -> Check:
    now = dt.datetime.now(tz=dt.UTC)
    shown = f"{now:%Y-%m-%d %H:%M} UTC"
    if now.year < 2025:
        return Check("clock", "fail", f"{shown}: object stores refuse requests signed so", "set the clock; run NTP")
    # adjtimex with modes=0 reads and changes nothing.
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state == TIME_ERROR:
        return Check("clock", "pass", f"{shown}; the kernel does not know it to be synchronised (stores allow 15 min)")
    return Check("clock", "pass", f"{shown}, synchronised")

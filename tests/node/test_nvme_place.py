"""Where the disk tier may be: on a mounted file system, if that is asked for, and on one that can hold it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal_core.errors import ConfigError
from shoal_node.tiers import nvme_place
from shoal_node.tiers.nvme import NvmeTier
from tests.support.running_node import MakeInProcess

MOUNTS = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 259:0 / /mnt/nvme0 rw,noatime - xfs /dev/nvme0n1 rw
31 22 8:1 /var/lib/shoal /mnt/part rw - ext4 /dev/sda1 rw
32 22 8:1 /mnt/nvme1 /mnt/twice rw - ext4 /dev/sda1 rw
33 22 259:1 / /mnt/twice rw - xfs /dev/nvme1n1 rw
34 22 0:40 /@data /mnt/volume rw - btrfs /dev/sdb rw,space_cache,subvolid=5,subvol=/@data
35 22 0:40 /@data/sub /mnt/inside rw - btrfs /dev/sdb rw,subvolid=5,subvol=/@data
36 22 259:2 / /mnt/with\040blank rw - xfs /dev/nvme2n1 rw
no mount at all
"""


@pytest.mark.parametrize(
    "directory",
    ["/mnt/nvme0", "/mnt/nvme0/shoal/pool", "/mnt/twice/x", "/mnt/volume", "/mnt/with blank/x"],
)
def test_a_mounted_disk(directory: str) -> None:
    assert nvme_place.refusal(directory, MOUNTS) == ""


@pytest.mark.parametrize(
    ("directory", "said"),
    [
        ("/mnt/nvme1", "not a mount: it lies on the root file system"),
        ("/mnt/nvme01", "not a mount"),
        ("/mnt/part/x", "but of the directory /var/lib/shoal"),
        ("/mnt/inside", "but of the directory /@data/sub"),
    ],
)
def test_not_a_mounted_disk(directory: str, said: str) -> None:
    assert said in nvme_place.refusal(directory, MOUNTS)
    assert "no mounted file system" in nvme_place.refusal(directory, "")


def test_a_node_refuses_a_place_that_is_no_mount(
    in_process_node: MakeInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = {"directory": str(tmp_path / "disk"), "budget_bytes": "16MiB", "require_mount": True}
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(nvme_place, "MOUNTS", str(mounts))
    mounts.write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    with pytest.raises(ConfigError, match=r"nvme\[0\]\.directory: .* is not a mount.*nvme\[0\]\.require_mount"):
        in_process_node({"nvme": [disk]})
    assert not (tmp_path / "disk").exists(), "nothing was written"
    mounts.write_text(f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 / {os.path.realpath(tmp_path)} rw - xfs x rw\n")
    in_process_node({"nvme": [disk]})
    mounts.unlink()
    with pytest.raises(ConfigError, match=r"nvme\[0\]\.directory"):
        in_process_node({"nvme": [disk | {"directory": str(tmp_path / "other")}]})


@pytest.mark.parametrize(("keep", "said"), [(0, "can hold: it has"), (1 << 60, "nvme\\[0\\].keep_free_bytes = ")])
def test_a_disk_that_is_smaller_than_the_budget(
    in_process_node: MakeInProcess, tmp_path: Path, keep: int, said: str
) -> None:
    budget = (1 << 60) if not keep else (16 << 20)
    disk = {"directory": str(tmp_path / "disk"), "budget_bytes": budget, "keep_free_bytes": keep}
    with pytest.raises(ConfigError, match=rf"nvme\[0\]\.budget_bytes: {budget} is more than the disk.*{said}"):
        in_process_node({"nvme": [disk]})


def test_what_is_to_stay_free_is_not_taken(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    tier = NvmeTier(str(tmp_path / "a"), 16 << 20, 1 << 20, (65536,), keep_free_bytes=free.f_bavail * free.f_frsize)
    with pytest.raises(OSError, match="keep_free_bytes"):
        tier.assign(0, 0)
    tier.close()
    tier = NvmeTier(str(tmp_path / "b"), 16 << 20, 1 << 20, (65536,), keep_free_bytes=1)
    tier.assign(0, 0)
    tier.close()

"""The directories of the volumes on this machine: <root>/<pool>/volumes/<H>, H from the volume's id.

    volume.json   what the driver needs to know after a restart; written first
    mount/        what the pod sees: client.json, token, and node.sock, which the pool's node makes
    access.json   tells the node to make that socket and for whom; written last, removed first

Each file changes as a whole, and only when its content does. A directory without volume.json was being made or removed
when the driver ended. H is root's alone: what the pod sees it sees through its mount. Directories are per pool, so that
the nodes of two pools on one machine each see only their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from shoal_csi.request import Pod

_REMOVE_TRIES = 5
"""The node may make its socket while the directory is being emptied."""


class Record(msgspec.Struct, frozen=True):
    """volume.json."""

    volume_id: str
    target_path: str
    pod: Pod


class Volume(msgspec.Struct, frozen=True):
    """A volume that was published."""

    folder: Path
    record: Record

    @property
    def pool(self) -> str:
        return self.folder.parent.parent.name

    @property
    def mount(self) -> Path:
        """What the pod sees."""
        return self.folder / "mount"

    @property
    def socket(self) -> Path:
        return self.mount / "node.sock"

    def write(self, client: bytes, token: str, access: bytes) -> None:
        """New contents, the node's last."""
        self._put("client.json", client, inside=True)
        self._put("token", token.encode(), inside=True)
        self._put("access.json", access)

    def withdraw(self, token: str, access: bytes) -> None:
        """The contents of a volume that lost its data sets: the node is told first."""
        self._put("access.json", access)
        self._put("token", token.encode(), inside=True)

    def _put(self, name: str, content: bytes, inside: bool = False) -> None:
        path = (self.mount if inside else self.folder) / name
        # A new access.json is a new identity to the node, which ends the connections of the one before.
        if not path.exists() or path.read_bytes() != content:
            _write(self.folder, path, content, 0o644 if inside else 0o600)


class Folders:
    """All volumes below one root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(self, pool: str, record: Record) -> Volume:
        """A volume's directories, empty."""
        volume = Volume(self._root / pool / "volumes" / short(record.volume_id), record)
        volume.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(volume.folder, volume.folder / "volume.json", msgspec.json.encode(record), 0o600)
        volume.mount.mkdir(exist_ok=True)
        volume.mount.chmod(0o755)  # whatever the umask: the pod's user is anybody
        return volume

    def find(self, volume_id: str) -> Volume | None:
        """The volume, whichever pool it is of."""
        for folder in self._root.glob(f"*/volumes/{short(volume_id)}"):
            volume = self.volume(folder)
            if volume is not None and volume.record.volume_id == volume_id:
                return volume
        return None

    def all(self) -> list[Path]:
        """Every directory, whether or not it is a volume's."""
        return sorted(self._root.glob("*/volumes/*"))

    @staticmethod
    def volume(folder: Path) -> Volume | None:
        """The volume whose directory it is; None: of none, it was being made or removed when the driver ended."""
        record = _record(folder)
        return None if record is None else Volume(folder, record)

    @staticmethod
    def remove(folder: Path) -> None:
        """The directory is gone, and the node's socket closed before it."""
        (folder / "access.json").unlink(missing_ok=True)
        for tries_left in reversed(range(_REMOVE_TRIES)):
            try:
                # volume.json goes last: an interrupted removal is found again.
                shutil.rmtree(folder / "mount")
                break
            except FileNotFoundError:
                break
            except OSError:
                if not tries_left:
                    raise
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass


def short(volume_id: str) -> str:
    """The name of a volume's directory: short, as a socket's path has at most 107 bytes."""
    return hashlib.sha256(volume_id.encode()).hexdigest()[:20]


def _record(folder: Path) -> Record | None:
    try:
        return msgspec.json.decode((folder / "volume.json").read_bytes(), type=Record)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _write(scratch: Path, path: Path, content: bytes, mode: int) -> None:
    """All of the file or nothing of it, made beside the mount so that no reader sees the half of it."""
    made = scratch / f".{path.name}.new"
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
    os.replace(made, path)

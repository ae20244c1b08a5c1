"""The modules that protoc made are those of the .proto files, and say what kubelet says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from shoal_csi.generated import csi_pb2, pluginregistration_pb2
from tests.tidy import tracked

FOLDER = Path("shoal_csi/generated")


def test_they_are_up_to_date(tmp_path: Path) -> None:
    tool = tracked.REPOSITORY / "tools" / "protos"
    subprocess.run([tool, tmp_path], env={**os.environ, "PYTHON": sys.executable}, check=True, timeout=50)
    made = {path.name: path.read_text() for path in (tmp_path / FOLDER).iterdir()}
    kept = {name: (tracked.REPOSITORY / "operator" / FOLDER / name).read_text() for name in made}
    assert made == kept and len(made) == 4


def test_the_numbers_are_kubelets() -> None:
    """By bytes, as the wire has them: number and kind of each field that is used."""
    mount = csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume(fs_type="x"))
    publish = csi_pb2.NodePublishVolumeRequest(
        volume_id="v", target_path="t", volume_capability=mount, readonly=True, secrets={"s": "1"},
        volume_context={"c": "2"},
    )  # fmt: skip
    assert publish.SerializeToString(deterministic=True) == (
        b"\x0a\x01v" b"\x22\x01t" b"\x2a\x05\x12\x03\x0a\x01x" b"\x30\x01"
        b"\x3a\x06\x0a\x01s\x12\x011" b"\x42\x06\x0a\x01c\x12\x012"
    )  # fmt: skip
    block = csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume())
    assert block.SerializeToString() == b"\x0a\x00"
    assert csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path="t").SerializeToString() == (
        b"\x0a\x01v\x12\x01t"
    )
    assert csi_pb2.GetPluginInfoResponse(name="n", vendor_version="v").SerializeToString() == b"\x0a\x01n\x12\x01v"
    assert csi_pb2.ProbeResponse(ready={"value": True}).SerializeToString() == b"\x0a\x02\x08\x01"
    assert csi_pb2.NodeGetInfoResponse(node_id="n").SerializeToString() == b"\x0a\x01n"
    info = pluginregistration_pb2.PluginInfo(type="t", name="n", endpoint="e", supported_versions=["1"])
    assert info.SerializeToString() == b"\x0a\x01t\x12\x01n\x1a\x01e\x22\x011"
    status = pluginregistration_pb2.RegistrationStatus(plugin_registered=True, error="e")
    assert status.SerializeToString() == b"\x08\x01\x12\x01e"

"""A machine for the tests of the CSI driver: a mount namespace with kubelet's directories, and the real driver in it.

The namespace is held by a process that waits, so that mounts outlive the driver as they do on a real machine, and end
with the test whatever happens. Tests look into it through /proc. `call` speaks the driver's gRPC as kubelet does.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf.message import Message

from shoal_csi.generated import csi_pb2, pluginregistration_pb2
from tests.support import waiting

NODE = "node-1"
CALL_S = 20.0
END_S = 15.0
NEEDS = "a mount namespace, for the volumes of the CSI driver, needs root and CAP_SYS_ADMIN"


class Machine:
    """Paths are the same inside and outside; `seen` is what they are inside."""

    def __init__(self, directory: Path) -> None:
        self.kubelet = directory / "kubelet"
        self.registration = self.kubelet / "plugins_registry"
        self.socket = directory / "csi" / "csi.sock"
        self.root = directory / "run"
        self.registration.mkdir(parents=True)
        argv = ["unshare", "--mount", "--propagation", "private", "cat"]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert self._holder.stdin is not None and self._holder.stdout is not None
            self._holder.stdin.write(b"ready\n")
            self._holder.stdin.flush()
            if self._holder.stdout.readline() != b"ready\n":
                pytest.skip(NEEDS)
        except BrokenPipeError:
            pytest.skip(NEEDS)

    @property
    def namespace(self) -> str:
        return f"/proc/{self._holder.pid}/ns/mnt"

    def seen(self, path: Path | str) -> Path:
        """A path as it is in the namespace."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def mounts(self) -> dict[str, set[str]]:
        """What is mounted below kubelet's directory, with the options."""
        table = Path(f"/proc/{self._holder.pid}/mountinfo").read_text()
        entries = (line.split(" ") for line in table.splitlines())
        return {entry[4]: set(entry[5].split(",")) for entry in entries if entry[4].startswith(str(self.kubelet))}

    def unmount(self, target: Path) -> None:
        subprocess.run(["nsenter", f"--mount={self.namespace}", "umount", target], check=True, timeout=END_S)

    def target(self, pod_uid: str) -> Path:
        """Where kubelet would want a pod's volume; the parent is there."""
        target = self.kubelet / "pods" / pod_uid / "volumes" / "kubernetes.io~csi" / "shoal" / "mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def close(self) -> None:
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(END_S)
        self._holder.stdout.close()


class Driver:
    """`shoal-csi` on a machine."""

    def __init__(self, machine: Machine, kubeconfig: Path, release_namespace: str, *more: str, log: Path) -> None:
        self.machine = machine
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *("nsenter", f"--mount={machine.namespace}", sys.executable, "-m", "shoal_csi"),
                    *("--node-id", NODE, "--endpoint", f"unix://{machine.socket}"),
                    *("--registration-dir", str(machine.registration), "--kubelet-socket", "/kubelet/csi.sock"),
                    *("--volumes-root", str(machine.root), "--health-port", "0", "--socket-wait-s", "0", *more),
                ],
                env={**os.environ, "KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": release_namespace},
                stdout=output,
                stderr=output,
            )
        registration = machine.registration / "csi.shoal.dev-reg.sock"
        serves = f"on {NODE}: at {machine.socket}"
        try:
            waiting.until(lambda: serves in self.log() or self.process.poll() is not None, "the driver's start")
            assert self.process.poll() is None, self.log()
        except AssertionError:
            self.process.kill()
            self.process.wait(END_S)
            raise
        self._channel = grpc.insecure_channel(f"unix:{machine.socket}")
        self._registration = grpc.insecure_channel(f"unix:{registration}")

    def log(self) -> str:
        return self._log.read_text()

    def call(self, service: str, method: str, message: Message, timeout_s: float = CALL_S) -> Any:
        """The answer; grpc.RpcError otherwise."""
        channel = self._registration if service.startswith("pluginregistration") else self._channel
        send = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=type(message).SerializeToString,
            response_deserializer=_answers(service, method).FromString,
        )
        return send(message, timeout=timeout_s)

    def publish(
        self,
        context: Mapping[str, str],
        target: Path,
        volume_id: str = "",
        secrets: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> None:
        """As kubelet does it, with the volume's id from the pod's uid where none is given."""
        fields: dict[str, Any] = {
            "volume_id": volume_id or volume_of(context),
            "target_path": str(target),
            "volume_capability": csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume()),
            "volume_context": context,
            "secrets": secrets or {},
        }
        self.call("csi.v1.Node", "NodePublishVolume", csi_pb2.NodePublishVolumeRequest(**fields | changes))

    def unpublish(self, volume_id: str, target: Path) -> None:
        message = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        self.call("csi.v1.Node", "NodeUnpublishVolume", message)

    def refusal(self, *arguments: Any, **named: Any) -> tuple[str, str]:
        """The code and the text with which a publish is refused."""
        with pytest.raises(grpc.RpcError) as caught:
            self.publish(*arguments, **named)
        return caught.value.code().name, caught.value.details() or ""

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        self.process.kill()
        self._gone()

    def close(self) -> int:
        """Ended as Kubernetes ends it; its exit status."""
        self.process.terminate()
        return self._gone()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.close()

    def _gone(self) -> int:
        self._channel.close()
        self._registration.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(END_S)
        self.process.kill()
        return self.process.wait(END_S)


def volume_of(context: Mapping[str, str]) -> str:
    return f"csi-{context['csi.storage.k8s.io/pod.uid']}"


@contextlib.contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    if os.geteuid():
        pytest.skip(NEEDS)
    made = Machine(directory)
    try:
        yield made
    finally:
        made.close()


def _answers(service: str, method: str) -> type[Message]:
    module = pluginregistration_pb2 if service.startswith("pluginregistration") else csi_pb2
    descriptor = module.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods_by_name[method]
    return getattr(module, descriptor.output_type.name)

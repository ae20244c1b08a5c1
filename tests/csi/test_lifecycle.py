"""What comes between: restarts of driver, machine and API server, calls at once, what is left behind, and kubelet."""

from __future__ import annotations

import concurrent.futures
import http.client
import shutil
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from shoal_csi.generated import csi_pb2, pluginregistration_pb2
from tests.cluster.cluster import Cluster
from tests.csi.machine import Driver, Machine
from tests.csi.tenants import Pod, Tenants, node
from tests.support import waiting

MIB = 1 << 20


@pytest.fixture(scope="module")
def reader(tenants: Tenants) -> Pod:
    """A pod that may read `images` of its own namespace; the pool has a node on the machine."""
    team = tenants.team()
    team.dataset("images", tenants.pool(node("node-1")))
    account = team.account()
    team.allow("images", account)
    return account.pod()


@pytest.fixture(scope="module")
def context(reader: Pod) -> dict[str, str]:
    return reader.context("images")


def _folders(machine: Machine) -> list[Path]:
    return list(machine.root.glob("*/volumes/*"))


def _start(machine: Machine, tenants: Tenants, log: Path, *more: str) -> Driver:
    return Driver(machine, tenants.kubeconfig, tenants.release, *more, log=log)


def test_while_the_api_server_is_away_nothing_is_lost(
    driver: Driver, machine: Machine, control_plane: Cluster, reader: Pod, context: dict[str, str]
) -> None:
    target = machine.target(reader.uid)
    driver.publish(context, target)
    (folder,) = _folders(machine)
    held = {path: path.read_bytes() for path in (folder / "access.json", folder / "mount" / "token")}
    other = machine.target("other")
    control_plane.stop_api()
    try:
        began_s = time.monotonic()
        for place, volume_id in (target, reader.volume_id), (other, "csi-other"):
            code, text = driver.refusal(context, place, volume_id=volume_id)
            assert code == "UNAVAILABLE" and text.startswith("the API server does not answer")
        assert time.monotonic() - began_s < 10
        assert {path: path.read_bytes() for path in held} == held and str(target) in machine.mounts()
        assert not other.exists() and len(_folders(machine)) == 1
        driver.unpublish(reader.volume_id, target)
        assert _folders(machine) == [] and machine.mounts() == {}
    finally:
        control_plane.start_api()
    driver.publish(context, target)


def test_an_api_server_that_hangs_costs_five_seconds(
    machine: Machine, tenants: Tenants, tmp_path: Path, control_plane: Cluster, reader: Pod, context: dict[str, str]
) -> None:
    pid = control_plane.processes.pid("apiserver")
    with _start(machine, tenants, tmp_path / "driver.log") as driver:
        target = machine.target(reader.uid)
        driver.publish(context, target)
        subprocess.run(["kill", "-STOP", str(pid)], check=True)
        try:
            began_s = time.monotonic()
            assert driver.refusal(context, target)[0] == "UNAVAILABLE"
            assert 4 < time.monotonic() - began_s < 9
        finally:
            subprocess.run(["kill", "-CONT", str(pid)], check=True)
        driver.publish(context, target)


def test_a_killed_driver_goes_on_where_it_was(
    machine: Machine, tenants: Tenants, tmp_path: Path, reader: Pod, context: dict[str, str]
) -> None:
    target = machine.target(reader.uid)
    with _start(machine, tenants, tmp_path / "first.log") as driver:
        driver.publish(context, target)
        driver.kill()
    (folder,) = _folders(machine)
    token = (folder / "mount" / "token").read_text()
    (folder.parent / "0123456789abcdef0123" / "mount").mkdir(parents=True)  # a publish that got no further
    with _start(machine, tenants, tmp_path / "second.log") as driver:
        assert _folders(machine) == [folder]
        assert (machine.seen(target) / "token").read_text() == token
        driver.publish(context, target)
        assert len(machine.mounts()) == 1 and _folders(machine) == [folder]
        driver.unpublish(reader.volume_id, target)
        assert machine.mounts() == {} and _folders(machine) == [] and not target.exists()
        driver.publish(context, target)
        assert driver.close() == 0
    # The machine starts anew: kubelet's directories are there, what was mounted is not, and /run is empty.
    machine.unmount(target)
    shutil.rmtree(machine.root)
    with _start(machine, tenants, tmp_path / "third.log") as driver:
        driver.publish(context, target)
        assert (machine.seen(target) / "client.json").exists()


def test_what_kubelet_forgot_is_swept(
    machine: Machine, tenants: Tenants, tmp_path: Path, reader: Pod, context: dict[str, str]
) -> None:
    target = machine.target(reader.uid)
    with _start(machine, tenants, tmp_path / "first.log") as driver:
        driver.publish(context, target)
    machine.unmount(target)
    with _start(machine, tenants, tmp_path / "second.log"):
        assert len(_folders(machine)) == 1  # kubelet's directory is there: it will publish or unpublish
    shutil.rmtree(machine.kubelet / "pods" / reader.uid)
    with _start(machine, tenants, tmp_path / "third.log") as driver:
        assert _folders(machine) == []
        assert "left behind, removed" in driver.log()


def test_a_volume_whose_directory_was_lost_is_mounted_anew(
    driver: Driver, machine: Machine, reader: Pod, context: dict[str, str]
) -> None:
    target = machine.target(reader.uid)
    driver.publish(context, target)
    shutil.rmtree(machine.root)
    assert not (machine.seen(target) / "token").exists()
    driver.publish(context, target)
    assert (machine.seen(target) / "token").exists() and len(machine.mounts()) == 1
    code, _ = driver.refusal(context, machine.target("elsewhere"))
    assert code == "FAILED_PRECONDITION"


def test_a_new_volume_waits_a_moment_for_the_node_and_takes_one_call_at_a_time(
    machine: Machine, tenants: Tenants, tmp_path: Path, reader: Pod, context: dict[str, str]
) -> None:
    target = machine.target(reader.uid)
    with (
        _start(machine, tenants, tmp_path / "driver.log", "--socket-wait-s", "30") as driver,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        first = threads.submit(driver.publish, context, target)
        waiting.until(lambda: list(machine.root.glob("*/volumes/*/access.json")), "the node being told")
        code, text = driver.refusal(context, target)
        assert (code, text) == ("ABORTED", "another call for this volume is under way")
        assert not first.done()
        (folder,) = _folders(machine)
        (folder / "mount" / "node.sock").touch()
        first.result(10)
        driver.publish(context, target)


def test_kubelet_learns_who_we_are(machine: Machine, tenants: Tenants, tmp_path: Path) -> None:
    with _start(machine, tenants, tmp_path / "driver.log") as driver:
        service = "pluginregistration.Registration"
        info = driver.call(service, "GetInfo", pluginregistration_pb2.InfoRequest())
        assert (info.type, info.name, info.endpoint) == ("CSIPlugin", "csi.shoal.dev", "/kubelet/csi.sock")
        assert list(info.supported_versions) == ["1.0.0"]
        status = pluginregistration_pb2.RegistrationStatus
        driver.call(service, "NotifyRegistrationStatus", status(plugin_registered=True))
        assert driver.call("csi.v1.Node", "NodeGetInfo", csi_pb2.NodeGetInfoRequest()).node_id == "node-1"
        assert driver.call("csi.v1.Identity", "Probe", csi_pb2.ProbeRequest()).ready.value
        plugin = driver.call("csi.v1.Identity", "GetPluginInfo", csi_pb2.GetPluginInfoRequest())
        assert plugin.name == "csi.shoal.dev" and plugin.vendor_version
        for path in machine.socket, machine.registration / "csi.shoal.dev-reg.sock":
            assert path.stat().st_mode & 0o077 == 0
        refused = status(plugin_registered=False, error="no such version")
        driver.call(service, "NotifyRegistrationStatus", refused)
        waiting.until(lambda: driver.process.poll() is not None, "the end of a driver that nobody wants")
        assert driver.process.returncode == 1 and "no such version" in driver.log()
        assert not machine.socket.exists() and list(machine.registration.iterdir()) == []


@pytest.fixture
def health_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_health_is_that_the_sockets_answer(
    machine: Machine, tenants: Tenants, tmp_path: Path, health_port: int
) -> None:
    def status(path: str = "/healthz") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", health_port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    with _start(machine, tenants, tmp_path / "driver.log", "--health-port", str(health_port)):
        assert status() == 200 and status("/") == 404
        machine.socket.unlink()
        assert status() == 503


def test_it_is_small(driver: Driver, machine: Machine, reader: Pod, context: dict[str, str]) -> None:
    target = machine.target(reader.uid)
    for _ in range(100):
        driver.publish(context, target)
    before = driver.rss_bytes()
    for _ in range(300):
        driver.publish(context, target)
    print(f"resident: {driver.rss_bytes() / MIB:.1f} MiB")
    assert driver.rss_bytes() < 80 * MIB
    assert driver.rss_bytes() - before < 2 * MIB


def test_a_block_device_and_a_file_system_are_refused(driver: Driver, machine: Machine) -> None:
    capability = csi_pb2.VolumeCapability
    for wanted, reason in (
        (capability(block=capability.BlockVolume()), "never a block device"),
        (capability(mount=capability.MountVolume(fs_type="ext4")), "fsType: 'ext4'"),
    ):
        code, text = driver.refusal({}, machine.target("1"), volume_id="csi-1", volume_capability=wanted)
        assert code == "INVALID_ARGUMENT" and reason in text
    with pytest.raises(grpc.RpcError) as caught:
        driver.unpublish("", machine.target("1"))
    assert caught.value.code().name == "INVALID_ARGUMENT"

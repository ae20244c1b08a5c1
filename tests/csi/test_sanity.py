"""csi-sanity, Kubernetes' own test of CSI drivers, against ours: all that it has for Identity and Node services.

It asks for what a driver must refuse, and for what it says of itself; what it would publish comes from a controller,
which a driver of ephemeral volumes does not have. So most skip themselves. Left out by us are the suites whose names
say [Controller Server] or [GroupController ...], which test a service that we do not announce, and 'should remove
target path' of the node, which calls CreateVolume without asking whether there is one: test_publish.py shows the same
with a real volume.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import binaries
from tests.cluster.processes import Unavailable
from tests.csi.machine import Driver, Machine

LEFT_OUT = (r"\[Controller Server\]", r"\[GroupController", "should remove target path")
SANITY_S = 50
RUN = {
    "Identity Service": 3,
    "Node Service": 7,
}
"""What applies to a driver without a controller, a stage or statistics."""


def test_csi_sanity(driver: Driver, machine: Machine, tmp_path: Path) -> None:
    try:
        program = binaries.folder("csi-sanity") / "csi-sanity"
    except Unavailable as error:
        pytest.skip(str(error))
    report = tmp_path / "report.json"
    argv = [
        *(program, f"-csi.endpoint=unix://{machine.socket}", *(f"-ginkgo.skip={text}" for text in LEFT_OUT)),
        *(f"-csi.mountdir={tmp_path / 'mount'}", f"-csi.stagingdir={tmp_path / 'staging'}"),
        *(f"-ginkgo.json-report={report}", "-ginkgo.no-color"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=SANITY_S, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + driver.log()
    specs: list[dict[str, Any]] = json.loads(report.read_text())[0]["SpecReports"]
    passed = [spec for spec in specs if spec["State"] == "passed" and spec["LeafNodeType"] == "It"]
    services = Counter(spec["ContainerHierarchyTexts"][0].split(" [")[0] for spec in passed)
    assert services == RUN, done.stdout
    print("\n".join(line for line in done.stdout.splitlines() if "Passed" in line or line.startswith("Ran ")))

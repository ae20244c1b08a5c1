"""One file for all nodes of a pool: what differs between them comes from the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal_core.errors import ConfigError
from shoal_node import configuration
from tests.support.running_node import MakeProcess

POD = {"NODE_NAME": "worker-1", "POD_IP": "127.0.0.1"}


def written(directory: Path, **fields: Any) -> str:
    file = directory / "node.json"
    data = {"node_name": "n", "dram": {"budget_bytes": "64MiB"}, "doors": {"unix": "/s"}}
    file.write_text(json.dumps(data | fields))
    return str(file)


def test_variables_are_replaced_in_the_name_and_the_doors(tmp_path: Path) -> None:
    doors = {"unix": "/run/${NODE_NAME}/${NODE_NAME}.sock", "tcp": "${POD_IP}:7440", "control": "${POD_IP}:7441"}
    node = configuration.read(written(tmp_path, node_name="${NODE_NAME}", doors=doors), POD)
    assert node.node_name == "worker-1"
    assert node.doors.unix == "/run/worker-1/worker-1.sock"
    assert (node.doors.tcp, node.doors.control) == ("127.0.0.1:7440", "127.0.0.1:7441")


def test_a_pods_address_may_be_ipv6(tmp_path: Path) -> None:
    file = written(tmp_path, doors={"tcp": "[${POD_IP}]:7440"})
    assert configuration.read(file, {"POD_IP": "fd00::1"}).doors.tcp == "[fd00::1]:7440"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"node_name": "${NO_SUCH}"}, "node_name: '${NO_SUCH}': the environment has no variable 'NO_SUCH'"),
        ({"doors": {"tcp": "${NO_SUCH}:7440"}}, "doors.tcp: '${NO_SUCH}:7440': the environment has no variable"),
        ({"doors": {"tcp": "${EMPTY}:7440"}}, "has no variable 'EMPTY', or it is empty"),
        ({"doors": {"unix": "/${}"}}, "doors.unix: '/${}': the environment has no variable ''"),
        ({"doors": {"tcp": "${POD_IP}"}}, "doors.tcp: '127.0.0.1' is not host:port"),
        ({"doors": 3}, "doors: expected a table, got 3"),
        ({"node_name": 3}, "node_name: expected str"),
    ],
)
def test_what_is_not_set_is_named_with_its_field(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    file = written(tmp_path, **fields)
    with pytest.raises(ConfigError) as caught:
        configuration.read(file, POD | {"EMPTY": ""})
    assert str(caught.value).startswith(f"{file}: ") and says in str(caught.value)


def test_in_other_fields_it_is_text(tmp_path: Path) -> None:
    file = written(tmp_path, datasets={"a": {"url": "s3://bucket/${NODE_NAME}"}})
    assert configuration.read(file, POD).datasets["a"].url == "s3://bucket/${NODE_NAME}"
    assert configuration.read(written(tmp_path, node_name="$NODE_NAME {x}"), POD).node_name == "$NODE_NAME {x}"


def test_a_node_starts_with_what_its_pod_says(node_process: MakeProcess) -> None:
    node = node_process(
        {"node_name": "${NODE_NAME}", "tenant": "shoal", "doors": {"tcp": "${POD_IP}:0"}}, environment=POD
    )
    assert node.status()["node"] == "worker-1" and node.tcp_address.startswith("tcp:127.0.0.1:")
    assert node.status()["config"]["tenant"] == "shoal"

"""node.toml: how every node of a pool runs. One text for all of them; what differs comes from the pod's environment.

A node reads it once, when it starts. So a change of it is a change of the pod template (by its hash), and reaches the
nodes one by one as an update does. What may change while nodes run (view, data sets, preloads) is in the pool state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shoal_operator import names
from shoal_operator.model import Pool, Settings
from shoal_operator.specs import PoolSpec

NVME_DIRECTORY = "/var/lib/shoal/nvme"
STATE_DIRECTORY = "/var/lib/shoal/state"
KEY_DIRECTORY = "/etc/shoal/key"
CONFIG_DIRECTORY = "/etc/shoal/config"
CONFIG_FILE = "node.toml"
KEY_FILE = "key"


def run_directory(pool: str) -> str:
    """On the host and, by the same name, in the pod: sockets and volumes of one pool."""
    return f"/run/{names.GROUP}/{pool}"


def text(pool: Pool, spec: PoolSpec, settings: Settings) -> str:
    """The file."""
    run = run_directory(pool.name)
    tables: dict[str, dict[str, Any]] = {
        "": {
            "node_name": "${NODE_NAME}",
            "tenant": "shoal",
            # On the disk tier where there is one: a node that comes back knows the view and what lies on its disk.
            "state_directory": f"{NVME_DIRECTORY}/state" if spec.nvme else STATE_DIRECTORY,
        },
        "doors": {
            "unix": f"{run}/node.sock",
            "tcp": f"${{POD_IP}}:{spec.ports.data}",
            "control": f"${{POD_IP}}:{spec.ports.control}",
        },
        "dram": {"budget_bytes": int(spec.dram.budget_bytes), "huge_pages": spec.dram.huge_pages},
        "fill": {"block_size_bytes": int(spec.block_size_bytes)},
        "access": {
            "key_file": f"{KEY_DIRECTORY}/{KEY_FILE}",
            "pool": pool.name,
            "volumes_directory": f"{run}/volumes",
            "share_memory_with": list(spec.shared_memory.namespaces),
        },
        "cluster": {"view": f"kubernetes:{settings.namespace}/{names.of_pool(pool.name)}"},
    }
    parts = [_table(name, values) for name, values in tables.items()]
    parts += [
        _table("[nvme]", {
            "directory": NVME_DIRECTORY,
            "budget_bytes": int(nvme.capacity_bytes),
            "keep_free_bytes": int(nvme.keep_free_bytes),
            "require_mount": nvme.require_mount,
        })
        for nvme in spec.nvme
    ]  # fmt: skip
    return "\n".join(parts)


def _table(name: str, values: Mapping[str, Any]) -> str:
    head = f"[{name}]\n" if name else ""
    # What JSON writes for text, numbers, truth and lists of text is TOML as well.
    return head + "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())

"""How a process finds its node: argument, SHOAL_CONFIG, the pod's volume, the user's embedded node.

The first that is there decides; a configured node that does not answer is not replaced by another, because reads then
go to the origin, visibly, and come back when it does. In a pod an embedded node is started only when asked for: it
would take memory and disk that nobody budgeted.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal import embedded as embedded_node
from shoal.client import Client
from shoal_core import limits
from shoal_core.config import ClientConfig, parse_client
from shoal_core.errors import ConfigError, ShoalError
from shoal_transport.memory import MemoryListener

POD_CONFIG = "/run/shoal/client.json"

_NO_NODE_IN_POD = f"""this pod has no Shoal volume ({POD_CONFIG} is missing), and in a pod no embedded node is started \
unless asked for with shoal.connect(embedded=True). Add to the pod:
  volumes:
  - name: shoal
    csi: {{driver: csi.shoal.dev, readOnly: true}}
and to the container:
  volumeMounts:
  - {{name: shoal, mountPath: /run/shoal, readOnly: true}}"""


def connect(
    address: str | MemoryListener | None = None,
    *,
    embedded: bool | None = None,
    deadline_s: float = limits.DEADLINE_S_DEFAULT,
    datasets: Mapping[str, str] | None = None,
    zone: str = "",
    rack: str = "",
    token_file: str | None = None,
) -> Client:
    """A client of the nearest node.

    `address`: "unix:/path", "tcp:host:port", or None to look for one. `embedded`: True starts the user's embedded node
    if need be, False never does. `deadline_s` bounds every call that names no deadline of its own. `datasets` says what
    shoal:// names mean while the node is gone. `zone` and `rack`: where this process is, if no node of its own host
    says it. `token_file` holds what proves to nodes elsewhere who this process is, where they ask for it.
    """
    if deadline_s <= 0:
        raise ConfigError(f"deadline_s: {deadline_s} is not above 0")
    config = None if address is not None or embedded else find_config()
    if config is not None:
        names = {**config.datasets, **(datasets or {})}
        address = _first_answering(config)
        zone, rack, token_file = zone or config.zone, rack or config.rack, token_file or config.token_file
        return Client(address, deadline_s=deadline_s, datasets=names, zone=zone, rack=rack, token_file=token_file)
    if address is None:
        if not embedded and in_pod():
            raise ConfigError(_NO_NODE_IN_POD)
        if embedded is False:
            raise ConfigError("no node is configured (SHOAL_CONFIG), and embedded=False forbids starting one")
        address = embedded_node.ensure(time.monotonic() + max(deadline_s, 30.0))
    client = Client(address, deadline_s=deadline_s, datasets=datasets, zone=zone, rack=rack, token_file=token_file)
    if isinstance(address, str) and address == embedded_node.address():
        embedded_node.warn_if_environment_differs(client)
    return client


def find_config() -> ClientConfig | None:
    """The client configuration that applies here, or None."""
    named = os.environ.get("SHOAL_CONFIG")
    if named:
        return read_config(named)
    return read_config(POD_CONFIG) if os.path.exists(POD_CONFIG) else None


def read_config(path: str) -> ClientConfig:
    """The client configuration in a JSON or TOML file; ConfigError names the file and the field."""
    try:
        text = Path(path).read_text("utf-8")
        data: Any = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
        return parse_client(data)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (ValueError, ShoalError) as error:
        raise ConfigError(f"{path}: {error}") from error


def in_pod() -> bool:
    """Whether this process runs in a Kubernetes pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _first_answering(config: ClientConfig) -> str:
    from shoal_transport.links import open_channel

    for address in config.addresses[:-1]:
        try:
            open_channel(address, time.monotonic() + 2.0).close()
            return address
        except ShoalError:
            continue
    return config.addresses[-1]

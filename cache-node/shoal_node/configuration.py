"""From a configuration file to a `NodeConfig`: TOML or JSON, `${NAME}` from the environment where a host decides.

One file serves all nodes of a pool, so what differs between them comes from the environment: the node's name and the
addresses of its doors. In no other field is `${` anything special.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal_core.config import NodeConfig, parse
from shoal_core.errors import ConfigError, ShoalError

_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def read(path: str, environment: Mapping[str, str]) -> NodeConfig:
    """The configuration in the file; ConfigError names the file and the field."""
    try:
        text = Path(path).read_text("utf-8")
        data: Any = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
        return parse(expanded(data, environment) if isinstance(data, dict) else data)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (ValueError, ShoalError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: too deeply nested") from None


def expanded(data: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The same with variables replaced; ConfigError names the field and the variable that is not set."""
    result = dict(data)
    if "node_name" in data:
        result["node_name"] = _value("node_name", data["node_name"], environment)
    doors = data.get("doors")
    if isinstance(doors, dict):
        result["doors"] = {name: _value(f"doors.{name}", value, environment) for name, value in doors.items()}
    return result


def _value(field: str, value: Any, environment: Mapping[str, str]) -> Any:
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        found = environment.get(match[1])
        if not found:
            raise ConfigError(f"{field}: {value!r}: the environment has no variable {match[1]!r}, or it is empty")
        return found

    return _VARIABLE.sub(variable, value)

"""stat: the node's counters and gauges, and its configuration in use, as one mapping. For people and `shoal top`."""

from __future__ import annotations

from typing import Any

import msgspec

KIND = 12


class Request(msgspec.Struct, array_like=True, frozen=True):
    pass


class Reply(msgspec.Struct, array_like=True, frozen=True):
    values: dict[str, Any]

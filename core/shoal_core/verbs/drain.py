"""drain: this node is to hand its blocks over and then take no more readers; or how far it is; or stay after all."""

from __future__ import annotations

from typing import Any

import msgspec

KIND = 19

START, PROGRESS, CANCEL = "start", "progress", "cancel"


class Request(msgspec.Struct, array_like=True, frozen=True):
    action: str


class Reply(msgspec.Struct, array_like=True, frozen=True):
    values: dict[str, Any]

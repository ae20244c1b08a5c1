"""token: what lets its bearer in at the other nodes of the pool, for a minute. For who may do everything at this node.

An administrator's command that reaches one node by its own socket, as in its pod, so reaches the others as well.
"""

from __future__ import annotations

import msgspec

KIND = 22


class Request(msgspec.Struct, array_like=True, frozen=True):
    pass


class Reply(msgspec.Struct, array_like=True, frozen=True):
    token: str
    """Empty where no token is asked for."""

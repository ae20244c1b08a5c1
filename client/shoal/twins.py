"""Async twins of blocking calls: the same call in a thread, for code that runs in an event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def twin(call: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The call for event loops."""

    @functools.wraps(call)
    async def asynchronous(*arguments: P.args, **options: P.kwargs) -> T:
        return await asyncio.to_thread(call, *arguments, **options)

    return asynchronous

"""URLs to objects, for a client: what it knows is fresh for a minute, then it asks the node, or else the origin."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shoal.objects import KnownObjects, ObjectInfo, from_wire
from shoal.origin_fallback import OriginReader
from shoal.patience import PASSING, Patience
from shoal.routed import Routed
from shoal.session import Session
from shoal_core import limits
from shoal_core.errors import BadRequest, Forbidden, NodeGone, NotFound, ObjectChanged, ProtocolError, ShoalError
from shoal_core.errors import from_wire as error_from_wire
from shoal_core.verbs import resolve


class Resolution:
    """Resolves in batches. `say` is told when the node could not be asked."""

    def __init__(
        self,
        session: Session,
        routed: Routed,
        origin: OriginReader,
        objects: KnownObjects,
        say: Callable[[Exception], None],
    ) -> None:
        self._session = session
        self._routed = routed
        self._origin = origin
        self._objects = objects
        self._say = say

    def many(self, urls: Sequence[str | ObjectInfo], deadline: float) -> list[ObjectInfo | ShoalError]:
        """One for each, in order: the object, or the error. Each URL is asked once, and at most once a minute."""
        if all(isinstance(url, ObjectInfo) for url in urls):
            return list(urls)  # type: ignore[arg-type]  # to hash one takes as long as anything else here
        found: dict[str | ObjectInfo, ObjectInfo | ShoalError] = {}
        unknown: list[str] = []
        for url in dict.fromkeys(urls):
            info = url if isinstance(url, ObjectInfo) else self._objects.get(url)
            if info is not None:
                found[url] = info
            elif isinstance(url, str):
                try:
                    url.encode()
                except UnicodeEncodeError:
                    found[url] = BadRequest(f"{url!r} is not valid Unicode")
                else:
                    unknown.append(url)
        for start in range(0, len(unknown), limits.BATCH_ITEMS_MAX):
            part = unknown[start : start + limits.BATCH_ITEMS_MAX]
            found.update(zip(part, self._ask(part, deadline), strict=True))
        return [found[url] for url in urls]

    def doubt(self, info: ObjectInfo, error: ShoalError) -> None:
        """A read failed: if the object is not what it was, whoever opens it again gets what it is now."""
        if isinstance(error, ObjectChanged | NotFound):
            self._objects.forget(info.url)

    def _ask(self, urls: list[str], deadline: float) -> list[ObjectInfo | ShoalError]:
        waiting = Patience(deadline)
        while True:
            answers, by_nodes = self._ask_once(urls, deadline)
            if by_nodes or not self._session.reached or not any(isinstance(answer, PASSING) for answer in answers):
                return answers
            if not waiting.pause():
                return answers

    def _ask_once(self, urls: list[str], deadline: float) -> tuple[list[ObjectInfo | ShoalError], bool]:
        """One try, and whether nodes answered it."""
        milliseconds = max(1, int((deadline - time.monotonic()) * 1000))
        request = resolve.Request([resolve.Wanted(url) for url in urls], milliseconds)
        try:
            try:
                reply = self._session.call(resolve.KIND, request, deadline)
            except (NodeGone, ProtocolError):
                again = self._routed if self._routed.active else self._session
                reply = again.call(resolve.KIND, request, deadline)
        except (NodeGone, ProtocolError) as error:
            self._say(error)
            answers = [self._ask_origin(url, deadline, error) for url in urls]
            # Not fresh: the fingerprint is the node's to give, and it is asked for as soon as the node is back.
            self._objects.add([info for info in answers if isinstance(info, ObjectInfo)], fresh_s=0.0)
            return answers, False
        answers = [
            from_wire(answer) if isinstance(answer, resolve.Object) else error_from_wire(answer.code, answer.text)
            for answer in reply.objects
        ]
        self._objects.add([info for info in answers if isinstance(info, ObjectInfo)])
        return answers, True

    def _ask_origin(self, url: str, deadline: float, reason: ShoalError) -> ObjectInfo | ShoalError:
        known = self._objects.stale(url)
        if known is not None:
            return known
        try:
            return self._origin.head(url, deadline)
        except NodeGone as error:
            # Nothing here says what the name stands for, so why no node said it is the answer.
            return reason if isinstance(reason, Forbidden) else error
        except ShoalError as error:
            return error

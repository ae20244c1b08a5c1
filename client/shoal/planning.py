"""What a loader tells its node: where its stream is, what comes next, and how long training waited for it.

A plan is advice. Whatever goes wrong with one (the node is gone, slow, older than the verb) costs the loader nothing
but the advice: `send` says that nothing was accepted, and what it was to report goes with the next. Only a client that
was closed is an error: there will be no next. The stream ends at the node when the planner is closed, or with its
client.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from shoal.client import Client
from shoal.objects import ObjectInfo
from shoal.routed_plans import RoutedPlans
from shoal_core import limits
from shoal_core.errors import Closed, ShoalError, UnknownObject
from shoal_core.verbs import plan

_SEND_S = 10.0
"""Not short: a node that does not answer a new connection within it counts as gone, for all who read from it."""
_CLOSE_S = 1.0


class Planner:
    """One stream's plans, over one client. Thread-safe; a call blocks for a round trip."""

    def __init__(self, client: Client, stream: bytes) -> None:
        """`stream`: 16 bytes that name this pass, random ones for instance."""
        if len(stream) != 16:
            raise ValueError(f"a stream is named by 16 bytes, not {len(stream)}")
        self._client = client
        self._stream = stream
        self._lock = threading.Lock()
        self._waited_s = 0.0
        self._steps = 0
        """Both not reported yet."""
        self._told = False
        self._routed: RoutedPlans | None = None
        """Of a client that reads from the owners of its blocks."""
        self.answered = False
        """Whether the last plan was: nothing accepted and no answer are two things."""
        self.settled = False
        """What the last reply said: plans change nothing for now."""
        self.connection: bytes | None = None
        """Names the one that the last reply came over: behind another is a node that may have heard nothing so far."""

    def send(
        self,
        position: int,
        uses: Sequence[tuple[ObjectInfo, int, int, int]],
        fill_until: int,
        evict_until: int | None = None,
        waited_s: float = 0.0,
        steps: int = 0,
        *,
        deadline_s: float = _SEND_S,
    ) -> int:
        """The stream is at `position`, an item count; each of `uses` is (object, first block, block count, use at).

        What is used before `fill_until` and is not in the node's memory is filled, in the order given; where something
        has to go for it, only if it is used before `evict_until` (None: the same). Returns how many
        of `uses` were dealt with; the rest is to be said again with the next plan. `waited_s` and `steps` are what
        training waited, and for how many steps, since the last call. Raises Closed, and nothing that concerns the
        node.
        """
        objects: dict[bytes, ObjectInfo] = {}
        numbers: dict[bytes, int] = {}
        named: list[plan.Use] = []
        blocks = 0
        for info, first, count, use_at in uses[: limits.PLAN_USES_MAX]:
            blocks += count
            if blocks > limits.PLAN_BLOCKS_MAX:
                break
            objects[info.fingerprint] = info
            named.append(plan.Use(numbers.setdefault(info.fingerprint, len(numbers)), first, count, use_at))
        with self._lock:
            self._waited_s = min(self._waited_s + waited_s, limits.STREAM_WAIT_S_MAX)
            self._steps = min(self._steps + steps, int(limits.STREAM_WAIT_S_MAX))
            request = plan.Request(
                self._stream,
                position,
                list(objects),
                named,
                fill_until,
                fill_until if evict_until is None else evict_until,
                self._waited_s,
                self._steps,
            )
            self._told = True  # a plan whose reply comes too late has begun the stream all the same
            accepted = self._send(request, list(objects.values()), time.monotonic() + deadline_s)
            if accepted is None:
                return 0
            self._waited_s, self._steps = 0.0, 0
        return min(accepted, len(named))

    def close(self) -> None:
        """The stream is read no further: what was kept for it may go. Twice is fine."""
        with self._lock:
            if self._told:
                self._told = False
                request = plan.Request(self._stream, 0, [], [], 0, 0, self._waited_s, self._steps, True)
                with contextlib.suppress(Closed):
                    self._send(request, [], time.monotonic() + _CLOSE_S)
            if self._routed is not None:
                self._routed.close()
                self._routed = None

    def _send(self, request: plan.Request, objects: list[ObjectInfo], deadline: float) -> int | None:
        """None when it did not reach the node, or was not understood."""
        self.answered = self.settled = False
        try:
            try:
                return self._called(request, objects, deadline)
            except UnknownObject:
                self._client._reading.resolve_again(objects, deadline)
                return self._called(request, objects, deadline)
        except Closed:
            raise
        except (ShoalError, OSError):
            return None

    def _called(self, request: plan.Request, objects: list[ObjectInfo], deadline: float) -> int:
        routed = self._client._routed
        if routed.active and not routed.local:
            self._routed = self._routed or RoutedPlans(self._client)
            answer = self._routed.send(request, objects, deadline)
            self.answered, self.settled, self.connection = True, answer.settled, answer.connections
            return answer.accepted
        reply: plan.Reply = self._client.session.call(plan.KIND, request, deadline)
        self.answered, self.settled = True, reply.settled
        if (attachment := self._client.session.attachment) is not None:
            self.connection = attachment.identity
        return reply.accepted

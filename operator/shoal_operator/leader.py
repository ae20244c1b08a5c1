"""Who reconciles: the process that holds the Lease `shoal-operator` in the release's namespace.

The holder renews every 2 s. Another process takes the Lease when its record has not changed for 8 s *by its own clock*
(the times in the record are for people: clocks differ), or at once when the holder gave it up on its way out.

A holder that could not renew for 6 s stops beginning reconciles: two seconds later somebody else may have begun, and a
call lasts at most 5 s. If the API server was merely away, the record still says us when it is back, and we go on; this
is why an outage of the API server costs no restarts. If the record says somebody else, `run` raises LostLease and the
process ends: everything it knew about what it had written may be stale.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoal_operator.api import Api, ApiError
from shoal_operator.kinds import KINDS

_LOG = logging.getLogger("shoal.operator.leader")

RENEW_S = 2.0
TERM_S = 8.0
RENEW_DEADLINE_S = 6.0
_LEASES = KINDS["Lease"]


class LostLease(Exception):
    """Another process leads now."""


@dataclass
class Seen:
    """The record as last read, and since when it has been the same on our clock."""

    holder: str = ""
    version: str = ""
    since_s: float = float("-inf")

    def look(self, holder: str, version: str, now_s: float) -> None:
        if (holder, version) != (self.holder, self.version):
            self.holder, self.version, self.since_s = holder, version, now_s

    def free(self, identity: str, now_s: float) -> bool:
        """May `identity` take it?"""
        return self.holder in ("", identity) or now_s - self.since_s >= TERM_S


class Election:
    """One candidate. `on_change(leading)` is told when this process may begin reconciles, and when not any more."""

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_change: Callable[[bool], None],
        now_s: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self._api = api
        self._path = _LEASES.path(namespace, name)
        self._collection = _LEASES.path(namespace)
        self._name = name
        self._identity = identity
        self._on_change = on_change
        self._now_s = now_s
        self._chance = chance or random.Random()
        self._seen = Seen()
        self._renewed_s = float("-inf")
        self._held = False
        self._gave_up = False
        self.leading = False

    async def run(self) -> None:
        """Until cancelled or given up; LostLease when another took over. A refusal or silence of the server passes."""
        while not self._gave_up:
            began_s = self._now_s()
            try:
                await self._once()
            except ApiError as error:
                if not error.conflict:
                    _LOG.warning("Lease %s: %s", self._name, error)
            if self.leading and self._now_s() - self._renewed_s > RENEW_DEADLINE_S:
                _LOG.warning(
                    "the Lease could not be renewed for %.0f s: nothing is begun until it is", RENEW_DEADLINE_S
                )
                self._lead(leading=False)
            await asyncio.sleep(max(0.1, began_s + RENEW_S * self._chance.uniform(0.9, 1.0) - self._now_s()))

    async def give_up(self) -> None:
        """On the way out: the next process need not wait for the term to end."""
        self._gave_up = True
        held, self._held = self._held, False
        self._lead(leading=False)
        if not held:
            return
        try:
            lease = await self._api.json("GET", self._path)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                await self._api.call("PUT", self._path, body=lease)
        except ApiError as error:
            _LOG.info("the Lease ends by itself: %s", error)

    async def _once(self) -> None:
        asked_s = self._now_s()
        try:
            lease = await self._api.json("GET", self._path)
        except ApiError as error:
            if not error.not_found:
                raise
            body = {
                "apiVersion": _LEASES.api_version,
                "kind": _LEASES.name,
                "metadata": {"name": self._name},
                "spec": self._spec({}),
            }
            lease = await self._api.json("POST", self._collection, body=body)
            self._mine(lease, asked_s)
            return
        holder = str(lease.get("spec", {}).get("holderIdentity") or "")
        self._seen.look(holder, str(lease["metadata"]["resourceVersion"]), asked_s)
        if self._held and holder != self._identity:
            self._held = False
            self._lead(leading=False)
            raise LostLease(f"{holder or 'nobody'} holds the Lease {self._name}")
        if self._seen.free(self._identity, self._now_s()):
            lease["spec"] = self._spec(lease.get("spec") or {})
            self._mine(await self._api.json("PUT", self._path, body=lease), asked_s)  # 409: another was faster

    def _mine(self, lease: dict[str, Any], asked_s: float) -> None:
        self._seen.look(self._identity, str(lease["metadata"]["resourceVersion"]), asked_s)
        self._renewed_s = asked_s
        self._held = True
        self._lead(leading=True)

    def _lead(self, *, leading: bool) -> None:
        if leading != self.leading:
            self.leading = leading
            _LOG.info("%s %s", self._identity, "leads" if leading else "does not lead")
            self._on_change(leading)

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        new = before.get("holderIdentity") != self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(TERM_S),
            "acquireTime": now if new else before.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (1 if new and before else 0),
        }

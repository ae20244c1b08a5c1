"""Whether a pool's account may read a data set's secret, as the API server decides it (SubjectAccessReview).

RBAC cannot be watched, so what was asked is asked again: every minute while the answer is yes, every 10 s while it is
no, and less often where there are so many questions that this would be more than ten a second. Data sets of one secret
share one question. Whoever is concerned hears only of answers that changed. The operator itself never reads the secret.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from shoal_operator import documents
from shoal_operator.api import Api, ApiError
from shoal_operator.kinds import KINDS
from shoal_operator.model import Dataset, Manifest, Settings
from shoal_operator.queueing import Key

_LOG = logging.getLogger("shoal.operator.access")

ASKED_PER_S = 10.0
_LOOK_EVERY_S = 1.0


@dataclass
class _Question:
    body: Manifest
    allowed: bool
    asked_s: float
    concerned: set[Key] = field(default_factory=set[Key])


class SecretAccess:
    """Questions and answers. `changed` is told of each Dataset whose answer is another than before."""

    def __init__(
        self,
        api: Api,
        settings: Settings,
        *,
        changed: Callable[[Key], None],
        active: Callable[[], bool],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._settings = settings
        self._changed = changed
        self._active = active
        self._now_s = now_s
        self._questions: dict[bytes, _Question] = {}
        self._of: dict[Key, bytes] = {}

    async def allowed(self, dataset: Dataset) -> bool | None:
        """None: no secret is named. Asked the first time, remembered then. ApiError when nobody answers."""
        key = Key("Dataset", dataset.namespace, dataset.name)
        body = documents.secret_question(dataset, self._settings)
        if body is None:
            self.forget(key)
            return None
        identity = msgspec.json.encode(body)
        if self._of.get(key) != identity:
            self.forget(key)
        if identity not in self._questions:
            answer = await self._ask(body)
            self._questions.setdefault(identity, _Question(body, answer, self._now_s()))
        question = self._questions[identity]
        question.concerned.add(key)
        self._of[key] = identity
        return question.allowed

    def forget(self, key: Key) -> None:
        """The Dataset is gone, or asks for something else now."""
        identity = self._of.pop(key, None)
        if identity is None:
            return
        question = self._questions[identity]
        question.concerned.discard(key)
        if not question.concerned:
            del self._questions[identity]

    async def run(self) -> None:
        """Asks again, until cancelled; only who leads."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._active():
                await self.ask_due()

    async def ask_due(self) -> None:
        """Everything whose turn it is."""
        least_s = len(self._questions) / ASKED_PER_S
        for question in list(self._questions.values()):
            if self._now_s() - question.asked_s < max(least_s, documents.ask_again_s(question.allowed)):
                continue
            try:
                allowed = await self._ask(question.body)
            except ApiError as error:
                _LOG.info("asked in vain: %s", error)
                return
            question.asked_s = self._now_s()
            if allowed != question.allowed:
                question.allowed = allowed
                for key in question.concerned:
                    self._changed(key)

    async def _ask(self, body: Manifest) -> bool:
        review = await self._api.json("POST", KINDS["SubjectAccessReview"].path(), body=body)
        return bool(review.get("status", {}).get("allowed"))

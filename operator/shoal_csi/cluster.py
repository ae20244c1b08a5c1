"""What the driver asks the Kubernetes API: who a token belongs to, what that account may use, what a pool holds.

Every call ends within API_TIMEOUT_S and is made once: kubelet asks again, so there are no retries here. An API server
that is away is UNAVAILABLE, which neither opens nor closes anything. Answers to reads are remembered for a few seconds,
because the pods of a machine mostly use the same data sets and kubelet publishes each again every minute; what decides
about access is asked anew each time. Only this module knows the client library; objects are plain dicts.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException

from shoal_core import access, view
from shoal_core.errors import ConfigError
from shoal_csi.refusals import Refused
from shoal_csi.request import AUDIENCE, DatasetName

API_TIMEOUT_S = 5.0
REMEMBERED_S = 5.0
_REMEMBERED_MAX = 1024
_DATASETS = "/apis/shoal.dev/v1alpha1/namespaces/{}/datasets/{}"
_POOL = "/apis/shoal.dev/v1alpha1/cachepools/{}"
_CONFIG_MAP = "/api/v1/namespaces/{}/configmaps/{}"
_SECRET = "/api/v1/namespaces/{}/secrets/{}"
_TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_EVENTS = "/api/v1/namespaces/{}/events"
_POD_UID = "authentication.kubernetes.io/pod-uid"

log = logging.getLogger("shoal.csi")


class User(msgspec.Struct, frozen=True):
    """Who a token belongs to, as the API server says."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: dict[str, list[str]]

    @property
    def pod_uid(self) -> str:
        """The pod that the token is bound to; empty: none."""
        return next(iter(self.extra.get(_POD_UID, [])), "")


class Cluster:
    """The API server, as the driver's own account sees it. Safe for threads."""

    def __init__(
        self, configuration: Configuration, release_namespace: str, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        configuration.retries = urllib3.Retry(0, redirect=False)
        self._api = ApiClient(configuration)
        self._namespace = release_namespace
        self._now_s = now_s
        self._lock = threading.Lock()
        self._remembered: dict[str, tuple[float, dict[str, Any]]] = {}

    def close(self) -> None:
        self._api.rest_client.pool_manager.clear()

    def review_token(self, token: str) -> User:
        """Whose token it is; UNAUTHENTICATED when it is nobody's, has expired or is for somebody else than us."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        status = self._call("POST", _TOKEN_REVIEWS, body).get("status", {})
        if status.get("authenticated") is not True or AUDIENCE not in status.get("audiences", []):
            reason = str(status.get("error") or "the API server does not know it").replace("\n", " ")
            raise Refused("UNAUTHENTICATED", f"the pod's token for {AUDIENCE} is not valid: {reason}")
        user = status.get("user", {})
        return User(user.get("username", ""), user.get("uid", ""), tuple(user.get("groups", [])), user.get("extra", {}))

    def may_use(self, user: User, dataset: DatasetName) -> bool:
        """Whether somebody let this account use the data set. Whether the data set exists makes no difference."""
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name,
                "uid": user.uid,
                "groups": list(user.groups),
                "extra": user.extra,
                "resourceAttributes": {
                    "verb": "use",
                    "group": "shoal.dev",
                    "resource": "datasets",
                    "namespace": dataset.namespace,
                    "name": dataset.name,
                },
            },
        }
        return self._call("POST", _ACCESS_REVIEWS, body).get("status", {}).get("allowed") is True

    def dataset(self, name: DatasetName) -> dict[str, Any]:
        """The spec of a Dataset."""
        found = self._read(_DATASETS.format(name.namespace, name.name))
        if found is None:
            raise Refused("NOT_FOUND", f"there is no Dataset {name.name} in the namespace {name.namespace}")
        return found.get("spec", {})

    def pool_view(self, pool: str) -> view.View:
        """The nodes of a pool, as the operator published them."""
        state = self._read(_CONFIG_MAP.format(self._namespace, f"shoal-{pool}"))
        if state is None:
            raise self._no_pool(pool)
        try:
            return view.parse(json.loads(state.get("data", {}).get("view.json", "")))
        except (ConfigError, ValueError) as error:
            text = f"ConfigMap {self._namespace}/shoal-{pool}: view.json: {error}"
            raise Refused("UNAVAILABLE", text) from error

    def pool_key(self, pool: str) -> bytes:
        """What the tokens of a pool are signed with."""
        secret = self._read(_SECRET.format(self._namespace, f"shoal-{pool}-key"))
        if secret is None:
            raise self._no_pool(pool)
        try:
            key = base64.b64decode(secret.get("data", {}).get("key", ""), validate=True)
        except binascii.Error:
            key = b""
        if len(key) < access.KEY_BYTES_MIN:
            raise Refused("UNAVAILABLE", f"Secret {self._namespace}/shoal-{pool}-key: key: missing or too short")
        return key

    def record_event(self, namespace: str, event: Mapping[str, Any]) -> None:
        """Put an event beside its object; the same again counts up. An event that cannot be had is only logged."""
        name: str = event["metadata"]["name"]
        try:
            if not self._create(_EVENTS.format(namespace), event):
                again = {key: event[key] for key in ("count", "lastTimestamp", "message")}
                self._call("PATCH", f"{_EVENTS.format(namespace)}/{name}", again)
        except Refused as error:
            log.warning("event %s/%s: %s", namespace, name, error)

    def _no_pool(self, pool: str) -> Refused:
        if self._read(_POOL.format(pool)) is None:
            return Refused("NOT_FOUND", f"there is no CachePool {pool}")
        return Refused("UNAVAILABLE", f"CachePool {pool} is not set up yet; see: kubectl describe cachepool {pool}")

    def _read(self, path: str) -> dict[str, Any] | None:
        """An object, at most REMEMBERED_S old; None: there is none."""
        now_s = self._now_s()
        with self._lock:
            at_s, found = self._remembered.get(path, (now_s - REMEMBERED_S, {}))
            if now_s - at_s < REMEMBERED_S:
                return found
        status, found = self._send("GET", path)
        if status == 404:
            return None
        self._expect(status, found, "GET", path)
        with self._lock:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[path] = now_s, found
        return found

    def _create(self, path: str, body: Mapping[str, Any]) -> bool:
        """False: it is there already."""
        status, answer = self._send("POST", path, body)
        if status != 409:
            self._expect(status, answer, "POST", path)
        return status != 409

    def _call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        status, answer = self._send(method, path, body)
        self._expect(status, answer, method, path)
        return answer

    @staticmethod
    def _expect(status: int, answer: Mapping[str, Any], method: str, path: str) -> None:
        if 200 <= status < 300:
            return
        message = f"{method} {path}: {status} {answer.get('message', '')}".rstrip()
        if status in (401, 403):
            raise Refused("INTERNAL", f"the driver's own account is not allowed what it needs: {message}")
        raise Refused("UNAVAILABLE", f"the API server could not answer: {message}")

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """(status, answer). UNAVAILABLE when there is none within the time."""
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            sent = self._api.param_serialize(
                method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = self._api.call_api(*sent, _request_timeout=API_TIMEOUT_S)
            data = response.read()
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            text = str(error).replace("\n", " ")
            raise Refused("UNAVAILABLE", f"the API server does not answer: {text}") from error
        try:
            answer: Any = json.loads(data or b"{}")
        except ValueError:
            answer = {"message": bytes(data[:200]).decode("utf-8", "replace")}
        return response.status, answer if isinstance(answer, dict) else {}

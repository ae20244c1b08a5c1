"""The admission webhook over HTTPS: POST /mutate, for pods that ask for a data set by a label. The only module that
knows FastAPI and uvicorn.

It runs on every replica, leader or not, and answers from what the watches have brought. It never refuses a pod and
never fails: what it cannot do it says as a warning, and the pod goes on as it is. Certificate and key are read again
when their files change, so a renewed certificate needs no restart.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response

from shoal_operator import injecting
from shoal_operator.metrics import Metrics
from shoal_operator.observing import Store

_LOG = logging.getLogger("shoal.operator.webhook")

_REVIEW_BYTES_MAX = 4 << 20
_CONNECTIONS_MAX = 256
_LOOK_EVERY_S = 5.0
_WITHOUT_EVERY_S = 2.0


def make_app(store: Store, metrics: Metrics) -> FastAPI:
    """The application over one store."""
    app = FastAPI(title="Shoal webhook", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/mutate")
    async def mutate(request: Request) -> Response:
        content = await request.body()
        try:
            if len(content) > _REVIEW_BYTES_MAX:
                raise ValueError("the review is too large")
            review = msgspec.json.decode(content)
            uid = str(review["request"]["uid"])
        except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
            return Response(f"not an AdmissionReview: {error}\n", status_code=400, media_type="text/plain")
        answer = _answer(store, metrics, review["request"])
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": uid, **answer}}
        return Response(msgspec.json.encode(body), media_type="application/json")

    del mutate  # the decorator registered it
    return app


def _answer(store: Store, metrics: Metrics, request: dict[str, Any]) -> dict[str, Any]:
    try:
        patch, warnings = _decide(store, request)
    except ValueError as error:
        patch, warnings = [], [f"shoal: {error}"]
    except Exception as error:
        _LOG.exception("a pod could not be treated")
        patch, warnings = [], [f"shoal: nothing was added: {type(error).__name__}"]
    metrics.injections.labels("patched" if patch else "refused" if warnings else "unchanged").inc()
    answer: dict[str, Any] = {"allowed": True}
    if warnings:
        answer["warnings"] = [warning[:256] for warning in warnings]
    if patch:
        answer["patchType"] = "JSONPatch"
        answer["patch"] = base64.b64encode(msgspec.json.encode(patch)).decode()
    return answer


def _decide(store: Store, request: dict[str, Any]) -> tuple[list[injecting.Operation], list[str]]:
    pod = request.get("object") or {}
    asked = injecting.wanted(pod, str(request.get("namespace") or ""))
    if asked is None:
        return [], []
    patch, warnings = injecting.operations(pod, asked, injecting.holders(store, asked))
    if asked not in store.datasets:
        warnings.append(f"shoal: there is no Dataset {asked.namespace}/{asked.name}; the pod waits for it")
    return patch, warnings


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers and without its ten wake-ups a second."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()


async def serve(app: FastAPI, *, directory: Path, port: int) -> None:
    """Until cancelled, with tls.crt and tls.key of `directory`; waits for them where they are not there yet."""
    certificate, key = directory / "tls.crt", directory / "tls.key"
    while not (certificate.exists() and key.exists()):
        _LOG.warning("no certificate in %s yet", directory)
        await asyncio.sleep(_WITHOUT_EVERY_S)
    config = uvicorn.Config(
        app,
        host="",
        port=port,
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        date_header=False,
        ws="none",
        timeout_graceful_shutdown=1,
        limit_concurrency=_CONNECTIONS_MAX,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    config.load()
    renewing = asyncio.create_task(_renew(config, certificate, key))
    try:
        await _Server(config).serve()
    finally:
        renewing.cancel()
    raise asyncio.CancelledError


async def _renew(config: uvicorn.Config, certificate: Path, key: Path) -> None:
    """New connections are made with what the files hold now."""
    seen = _stamp(certificate, key)
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        now = _stamp(certificate, key)
        if now == seen or config.ssl is None:
            continue
        try:
            config.ssl.load_cert_chain(certificate, key)
        except OSError as error:  # half of a pair, while it is being replaced: the next look sees both
            _LOG.warning("certificate: %s", error)
        else:
            seen = now


def _stamp(*files: Path) -> tuple[int, ...]:
    return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)

"""`shoal-operator`: reads flags and environment, and runs the operator on uvloop until it is told to end.

--metrics-port 8080      /healthz, /readyz, /metrics
--webhook-cert-dir DIR   tls.crt and tls.key; without it there is no webhook
--webhook-port 9443

POD_NAMESPACE            of the release; pools' objects go there
POD_NAME                 who leads, in the Lease
SHOAL_IMAGE              of cache nodes, for pools that name none
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import uvloop

from shoal_operator import handlers, operating
from shoal_operator.model import Settings


def options(argv: Sequence[str], environment: Mapping[str, str]) -> operating.Options:
    """SystemExit with a message where something is missing."""
    parser = argparse.ArgumentParser(prog="shoal-operator", description="Runs Shoal's CachePools.")
    parser.add_argument("--metrics-port", type=int, default=8080, help="/healthz, /readyz and /metrics (8080)")
    parser.add_argument("--webhook-cert-dir", type=Path, help="folder of tls.crt and tls.key; without it no webhook")
    parser.add_argument("--webhook-port", type=int, default=9443, help="of the webhook (9443)")
    parser.add_argument("--verbose", action="store_true", help="say more")
    flags = parser.parse_args(argv)
    namespace = environment.get("POD_NAMESPACE")
    if not namespace:
        parser.error("POD_NAMESPACE is not set: it says where the pools' objects go")
    logging.basicConfig(
        level=logging.DEBUG if flags.verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    handlers.quiet()
    return operating.Options(
        settings=Settings(namespace, environment.get("SHOAL_IMAGE", ""), metadata.version("shoal")),
        pod=environment.get("POD_NAME") or socket.gethostname(),
        metrics_port=flags.metrics_port,
        webhook_port=flags.webhook_port,
        webhook_certificates=flags.webhook_cert_dir,
        environment=environment,
    )


async def _run(chosen: operating.Options) -> None:
    code = 1
    try:
        code = await operating.run(chosen)
    except LookupError as error:
        logging.getLogger("shoal.operator").error("%s", error)
    finally:
        # Not by unwinding: a process that lost its Lease must be gone before another writes, and kopf's tasks take
        # seconds to agree to end. Nothing is left to be saved.
        logging.shutdown()
        os._exit(code)


def main() -> None:
    chosen = options(sys.argv[1:], os.environ)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(chosen))


if __name__ == "__main__":
    main()

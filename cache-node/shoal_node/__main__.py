"""`python -m shoal_node --config FILE`: one cache node, until SIGTERM, SIGINT, or nobody needs it any more."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys

from shoal_core.config import NodeConfig
from shoal_core.errors import ShoalError
from shoal_node import allocator, assembly, configuration

log = logging.getLogger("shoal.node")


async def serve(config: NodeConfig) -> None:
    """Run the node until it is told to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with assembly.running(config) as running:
        log.info("node %s: pid %d, ready at %s", config.node_name, os.getpid(), ", ".join(running.node.addresses))
        ending = {asyncio.create_task(stop.wait()), asyncio.create_task(running.lingered())}
        await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        for task in ending:
            task.cancel()
        if stop.is_set():
            await running.hand_over()
        log.info("node %s: ending%s", config.node_name, "" if stop.is_set() else ", no client for the linger time")


def main() -> int:
    parser = argparse.ArgumentParser(prog="shoal serve", description="Run one Shoal cache node.")
    parser.add_argument("--config", required=True, help="TOML or JSON file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    allocator.keep_buffers()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
        log.warning("uvloop is not installed; the plain event loop is used")
    try:
        run(serve(configuration.read(arguments.config, os.environ)))
    except ShoalError as error:
        sys.stderr.write(f"shoal: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

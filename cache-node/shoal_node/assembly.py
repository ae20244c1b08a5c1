"""From a configuration to a running node, and back: what is opened, in which order, and closed in reverse.

The order matters: the disk tier is recovered and the first DRAM segment made before any door opens, so a node that
accepts connections can serve. `shoal_node.__main__` adds signals and files; tests use `running` directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
from collections.abc import AsyncGenerator

from shoal_core import limits
from shoal_core.config import NodeConfig
from shoal_core.errors import ConfigError
from shoal_node import declared_datasets, expiry
from shoal_node.resolver import DEFAULT_SPACE, DERIVED_SPACE, Resolver
from shoal_node.runtime import Node
from shoal_node.serve import Server
from shoal_node.spaces import space_of, tier_classes
from shoal_node.state import NodeState
from shoal_node.tiers.nvme import FileIo, NvmeTier, Record
from shoal_transport.memory import MemoryListener
from shoal_transport.tcp import TcpListener
from shoal_transport.unix import UnixListener

log = logging.getLogger("shoal.node")
_TICK_S = 1.0


class RunningNode:
    """A node and its doors; `memory` is the door for this process."""

    def __init__(self, node: Node, server: Server, memory: MemoryListener) -> None:
        self.node = node
        self.server = server
        self.memory = memory

    async def lingered(self) -> None:
        """Returns when no client was connected for the configured time; never without one."""
        linger_s = self.node.config.linger_s
        if linger_s is None:
            await asyncio.get_running_loop().create_future()
            return
        # Looked at each second, not signalled: connections come and go in other threads, far more often.
        while self.server.idle_s() < linger_s:  # noqa: ASYNC110
            await asyncio.sleep(_TICK_S)


@contextlib.asynccontextmanager
async def running(config: NodeConfig, disk_io: FileIo | None = None) -> AsyncGenerator[RunningNode]:
    """The node of `config`, serving until the block ends. ConfigError for what cannot be opened.

    `disk_io` stands for the operating system under the disk tier: a test gives one that fails.
    """
    async with contextlib.AsyncExitStack() as stack:
        tenant = _user()
        nvme = _open_nvme(config, disk_io)
        if nvme is not None:
            stack.callback(nvme.close)
        state = make_state(config, tenant, nvme)
        if nvme is not None:
            _recover(state, nvme)
        node = Node(config, state, nvme, tenant)
        stack.push_async_callback(node.close)
        await asyncio.to_thread(node.grow, state.layout.next_segment_bytes())
        if not node.segments:
            raise ConfigError(
                f"dram.budget_bytes: not even a first segment of the {config.dram.budget_bytes} bytes can be had"
            )
        server = Server(node, Resolver(node))
        stack.callback(server.close)
        # Fills end before connections do: a closed connection ends leases, and nothing may write into their slots.
        memory = _listen(config, server)
        node.addresses = server.addresses
        tick = asyncio.create_task(_tick(node))
        stack.callback(tick.cancel)
        if config.doors.control is not None:
            await stack.enter_async_context(_control(node, config.doors.control))
        stack.push_async_callback(node.filler.close)
        stack.callback(node.start_drain)  # readers that still ask go elsewhere
        yield RunningNode(node, server, memory)


def make_state(config: NodeConfig, tenant: str, nvme: NvmeTier | None) -> NodeState:
    """A state with the configured spaces, empty."""
    state = NodeState(
        config.dram.budget_bytes,
        config.slab_bytes,
        config.fill.block_size_bytes,
        config.lease_bytes_max,
        nvme.slab_count if nvme is not None else 0,
    )
    state.add_space(space_of(tenant, DEFAULT_SPACE))
    state.add_space(space_of(tenant, DERIVED_SPACE))
    for space in declared_datasets.load(config.state_directory):
        if space.name not in config.datasets:
            state.add_space(space)
    for name, settings in config.datasets.items():
        state.add_space(
            space_of(
                tenant, name, url=settings.url, eviction=settings.eviction,
                quota_bytes=settings.quota_bytes, ttl_s=settings.ttl_s,
            )
        )  # fmt: skip
    return state


def _open_nvme(config: NodeConfig, disk_io: FileIo | None) -> NvmeTier | None:
    if not config.nvme:
        return None
    _, classes = tier_classes(config.slab_bytes, config.fill.block_size_bytes)
    place = config.nvme[0]
    return NvmeTier(place.directory, place.budget_bytes, config.slab_bytes, classes, disk_io)


def _recover(state: NodeState, nvme: NvmeTier) -> None:
    """Index what the last process left on disk. Bad or foreign records are dropped, never trusted."""
    assert state.disk is not None
    spaces = {space.uid: number for number, space in enumerate(state.spaces)}
    slabs: dict[int, int] = {}
    blocks = foreign = 0
    for found in nvme.recover():
        if not isinstance(found, Record):
            _, slab, class_index = found
            slabs[slab] = class_index
            continue
        space = spaces.get(found.space)
        slab = found.slot // limits.SLAB_SLOTS_MAX
        if space is None or (state.disk.slabs.assignment(slab) or (space, 0))[0] != space:
            foreign += 1
            continue
        if state.disk.slabs.assignment(slab) is None and state.disk.assign(space, slabs[slab], slab) is None:
            foreign += 1
            continue
        blocks += state.recovered(found.key, space, found.size, found.checksum, found.slot, found.filled_at_s)
    state.disk.recovered()
    if blocks or foreign:
        log.info("disk tier: %d blocks found, %d records dropped", blocks, foreign)


def _listen(config: NodeConfig, server: Server) -> MemoryListener:
    memory = MemoryListener()
    if config.doors.unix is not None:
        server.listen(UnixListener(config.doors.unix))
    if config.doors.tcp is not None:
        server.listen(TcpListener(config.doors.tcp))
    server.listen(memory)
    return memory


@contextlib.asynccontextmanager
async def _control(node: Node, address: str) -> AsyncGenerator[None]:
    # Imported only here: FastAPI costs 30 MiB, which a node without a control door need not spend.
    from shoal_node import control_api

    started: asyncio.Future[str] = node.loop.create_future()
    serving = asyncio.create_task(control_api.serve(control_api.make_app(node), address, listening=started.set_result))
    await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    node.addresses = [*node.addresses, f"control:{started.result()}"]
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def _tick(node: Node) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        dropped = True
        while dropped:
            with node.step() as state:
                dropped = expiry.expire(state, node.now_s()) > 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"

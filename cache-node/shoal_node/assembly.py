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

import msgspec

from shoal_core import limits
from shoal_core.config import NodeConfig, in_kubernetes
from shoal_core.errors import ConfigError
from shoal_node import declared_datasets, expiry
from shoal_node.kubernetes.pool import Pool
from shoal_node.resolver import Resolver
from shoal_node.runtime import Node
from shoal_node.serve import Server
from shoal_node.spaces import DEFAULT_SPACE, DERIVED_SPACE, space_of, tier_classes
from shoal_node.state import NodeState
from shoal_node.tiers import nvme_place
from shoal_node.tiers.nvme import FileIo, NvmeTier, Record
from shoal_node.volumes import Volumes
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

    async def hand_over(self) -> None:
        """Before it ends: give its blocks to the others, for as long as the configuration grants."""
        node = self.node
        granted_s = node.config.cluster.handover_on_exit_s if node.config.cluster is not None else 0.0
        if not granted_s:
            return
        node.start_drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(granted_s):
                while not node.refusing:  # noqa: ASYNC110 looked at, as it takes minutes
                    await asyncio.sleep(_TICK_S / 10)
        progress = node.drain_progress()["handover"]
        log.info("node %s: handed over %s", node.config.node_name, progress)


@contextlib.asynccontextmanager
async def running(config: NodeConfig, disk_io: FileIo | None = None) -> AsyncGenerator[RunningNode]:
    """The node of `config`, serving until the block ends. ConfigError for what cannot be opened.

    `disk_io` stands for the operating system under the disk tier: a test gives one that fails.
    """
    async with contextlib.AsyncExitStack() as stack:
        tenant = config.tenant or _user()
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
        resolver = Resolver(node)
        node.datasets.begin()
        place = in_kubernetes(config.cluster.view) if config.cluster is not None else None
        if place is not None:
            node.pool = Pool(node, *place)
        server = Server(node, resolver)
        stack.callback(server.close)
        # Fills end before connections do: a closed connection ends leases, and nothing may write into their slots.
        memory = _listen(config, server)
        if config.access.volumes_directory is not None:
            stack.callback(Volumes(config.access.volumes_directory, server).close)
        node.addresses = server.addresses
        if node.peers is not None:
            node.peers.start()
        if node.pool is not None:
            node.pool.start()
        tick = asyncio.create_task(_tick(node))
        stack.callback(tick.cancel)
        if config.doors.control is not None:
            await stack.enter_async_context(_control(node, config.doors.control))
        stack.push_async_callback(node.filler.close)
        if node.pool is not None:
            stack.push_async_callback(node.pool.close)
        stack.callback(node.refuse)  # readers that still ask go elsewhere
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
        state.add_space(space_of(tenant, name, **msgspec.structs.asdict(settings)))
    return state


def _open_nvme(config: NodeConfig, disk_io: FileIo | None) -> NvmeTier | None:
    if not config.nvme:
        return None
    _, classes = tier_classes(config.slab_bytes, config.fill.block_size_bytes)
    place = config.nvme[0]
    nvme_place.check(place, "nvme[0]")
    return NvmeTier(place.directory, place.budget_bytes, config.slab_bytes, classes, disk_io, place.keep_free_bytes)


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
    state.recovery_ended()
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

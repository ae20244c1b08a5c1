"""What nodes ask each other: whole blocks by key, to take blocks over, and the view. Any client may ask the same.

A `fetch` gives what is here, from memory or disk, and nothing else; an `offer` is answered at once, and what it names
is pulled later (`pulling`). Nothing here waits for another node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shoal_core import index, limits
from shoal_core.errors import BadRequest, DeadlineExceeded
from shoal_core.verbs import dataset, fetch, get, holding, offer, view
from shoal_node import inline
from shoal_node.batches import Batch, Delivered
from shoal_node.fill import Flight
from shoal_node.inline import HeldBlock
from shoal_node.runtime import Node
from shoal_node.state import NodeState

_LOAD_FILLS = 64
"""With so many fills under way a node counts as busy."""


class Given(NamedTuple):
    """A reply with bytes; `done` is called when they were sent."""

    body: Any
    payload: Sequence[memoryview]
    done: Callable[[], None]


def load(node: Node) -> float:
    """0 idle, 1 busy, for readers to choose between nodes that are equally near."""
    return min(1.0, node.filler.running / _LOAD_FILLS)


def held_block(node: Node, state: NodeState, entry: int, source: int) -> HeldBlock:
    """A block in DRAM that is held, for a send. Inside a step."""
    memory, table = node.entry_memory(entry), bytes(state.digest_table(entry))
    return HeldBlock(entry, state.index.generation[entry], source, memory, table)


def give(node: Node, request: fetch.Request) -> Given:
    """The blocks of these keys that are here."""
    if len(request.keys) > limits.BATCH_ITEMS_MAX:
        raise BadRequest(f"{len(request.keys)} keys in one fetch; at most {limits.BATCH_ITEMS_MAX}")
    deadline = time.monotonic() + min(request.deadline_ms / 1000, limits.DEADLINE_S_MAX)
    batch = Batch(len(request.keys))
    new: list[Flight] = []
    with node.step():
        node.arrivals.held_batch(request.keys, batch, new)
    if new:
        node.loop.call_soon_threadsafe(node.filler.start, new)
    late = not batch.wait(deadline - time.monotonic())
    items: list[get.Inline | get.Bypass] = []
    held: list[HeldBlock] = []
    with node.step() as state:
        batch.abandoned = True
        size = 0
        for outcome in batch.outcomes:
            if isinstance(outcome, Delivered) and size <= limits.BATCH_BYTES_MAX:
                block = held_block(node, state, outcome.entry, outcome.source)
                size += len(block.memory)
                held.append(block)
                whole = get.Item(0, 0, 0, len(block.memory))
                items.append(inline.answer(whole, block, set())[0])
                continue
            if isinstance(outcome, Delivered):
                state.unhold(outcome.entry)
            items.append(get.Bypass("too late" if outcome is None and late else str(outcome or DeadlineExceeded())))

    def done() -> None:
        with node.step() as state:
            for block in held:
                state.unhold(block.entry)

    epoch = node.peers.epoch if node.peers is not None else 0
    return Given(fetch.Reply(items, epoch, load(node)), [block.memory for block in held], done)


def take_over(node: Node, request: offer.Request) -> offer.Reply:
    """Which of the blocks offered are here; the others are queued, as far as there is room."""
    if len(request.blocks) > limits.OFFER_BLOCKS_MAX:
        raise BadRequest(f"{len(request.blocks)} blocks in one offer; at most {limits.OFFER_BLOCKS_MAX}")
    if node.peers is None or node.draining:
        return offer.Reply(bytes([offer.REFUSED]) * len(request.blocks), 0)
    return offer.Reply(node.peers.pulling.offered(request), node.peers.epoch)


def tell_view(node: Node, request: view.Request) -> view.Reply:
    """The view as this node knows it, if the asker's is older."""
    known = node.peers.cluster.router.view if node.peers is not None else None
    if known is None:
        return view.Reply(0, None)
    datasets: list[dataset.Request] = []
    if request.datasets:
        with node.step() as state:
            datasets = [
                dataset.Request(
                    each.name,
                    each.url,
                    each.eviction,
                    each.quota_bytes,
                    each.ttl_s,
                    each.replicas,
                    each.endpoint,
                    each.region,
                    list(each.include),
                    list(each.exclude),
                    each.refresh_s,
                )
                for each in state.spaces
                if each.url is not None
            ]
    return view.Reply(known.epoch, known if known.epoch > request.epoch else None, datasets)


def tell_holding(node: Node, request: holding.Request) -> holding.Reply:
    """Which blocks are here, and why the others are not."""
    count = max(len(request.keys), len(request.urls))
    if count > limits.BATCH_ITEMS_MAX:
        raise BadRequest(f"{count} keys or URLs in one request; at most {limits.BATCH_ITEMS_MAX}")
    states = bytearray(len(request.keys))
    endings: list[holding.Ending] = []
    now_s = node.now_s()
    with node.step() as state:
        for position, key in enumerate(request.keys):
            entry = state.index.find(key)
            if entry == index.NONE:
                ended = node.endings.why(key)
                if ended is not None:
                    endings.append(holding.Ending(position, ended[0], max(0, now_s - ended[1])))
                continue
            states[position] = (
                holding.DRAM * (state.index.dram_slot[entry] != index.NO_SLOT)
                | holding.DISK * (state.index.disk_slot[entry] != index.NO_SLOT)
                | holding.NEAR * (node.peers is not None and entry in node.peers.near)
            )
    if request.verify:
        _verify(node, request.keys, states)
    return holding.Reply(bytes(states), endings, _versions(node, request.urls) if request.urls else [])


def _versions(node: Node, urls: list[str]) -> list[holding.Version]:
    places = {url: place for place, url in enumerate(urls)}
    with node.step() as state:
        records = state.objects.versions(places)
    return [
        holding.Version(places[record.url], record.size, record.etag, record.fingerprint, record.block_size_bytes)
        for record in records
    ]


def _verify(node: Node, keys: list[bytes], states: bytearray) -> None:
    """Hash what is here: in memory in place; what is on disk comes up as for a reader, and is checked on its way."""
    for position, key in enumerate(keys):
        if not states[position]:
            continue
        batch = Batch(1)
        new: list[Flight] = []
        with node.step():
            node.arrivals.held_batch([key], batch, new)
        if new:
            node.loop.call_soon_threadsafe(node.filler.start, new)
        batch.wait(node.config.fill.timeout_s)
        with node.step() as state:
            batch.abandoned = True
            outcome = batch.outcomes[0]
            block = held_block(node, state, outcome.entry, outcome.source) if isinstance(outcome, Delivered) else None
        if block is None:
            states[position] = 0
            continue
        good = inline.is_good(block)
        if not good:
            states[position] |= holding.CORRUPT
        with node.step() as state:
            if not good:
                node.counters.corrupt_pages["dram"] += 1
                state.drop(block.entry, erase=True, quarantine=True, reason="corrupt")
            state.unhold(block.entry)

"""Why a read goes where it goes: what `shoal explain` shows, for the process that asks.

Three parts, in this order, because the last changes the first: what the nodes say of the block now; whom this process
would ask, in which order, and who is passed over; and then a real read of the block's first byte, with who gave it.
Distance, load, failures and pauses are this process's own knowledge: another reader may know otherwise.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from shoal import placing
from shoal.members import DISTANCES, Members
from shoal.pieces import Piece
from shoal_core import keys, placement, router, routing, view
from shoal_core.errors import BadRequest, ShoalError
from shoal_core.verbs import holding

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.objects import ObjectInfo
    from shoal.placing import Block

ENDINGS = {
    "evicted": "it made room for other blocks",
    "quota": "its space had more than its quota",
    "corrupt": "its bytes did not match their digests",
    "expired": "its data set's time to live was over",
    "dropped": "it was dropped by command",
    "near": "it was a near copy, which gives way first",
    "refused": "there was no room for it: everything that could go was leased or pinned",
    "late": "too slow: its fill did not end in time",
    "failed": "its origin answered with an error",
}

TIERS = {"shared memory": "dram", "unix": "dram", "tcp": "dram", "memory": "dram", "direct": "origin"}
"""Where a block was, by the counter of this client that rose. The others have the same name."""


class Step(NamedTuple):
    """Somebody to ask, or somebody who is not asked."""

    node_id: str | None
    """None: the origin."""
    distance: str
    reasons: list[str]


class Trace(NamedTuple):
    """A read that was made."""

    node_id: str | None
    """Who gave the byte; None: the origin did, without a node."""
    tier: str
    """dram, disk, peer or origin: where that node had it from."""
    door: str
    """The counter in `Client.stats().hits` that counted it."""
    milliseconds: float
    error: str | None = None
    """Why there is no byte."""


class Explanation(msgspec.Struct):
    """Of one block of one object, for one process."""

    block: Block
    state: str
    """held, near (only on nodes that do not own it), other version, never stored, or one of ENDINGS."""
    why: str
    age_s: int | None
    """How long ago the block went, or did not come."""
    steps: list[Step]
    passed_over: list[Step]
    trace: Trace


def explain(client: Client, info: ObjectInfo, number: int, *, deadline_s: float = 60.0) -> Explanation:
    """All three parts."""
    if not 0 <= number < placing.block_count(info):
        raise BadRequest(f"{info.url}: there is no block {number}; it has {placing.block_count(info)}")
    deadline = time.monotonic() + deadline_s
    members = client.members(deadline_s=deadline_s)
    (block,) = placing.look(members, [(info, number)], deadline)
    placing.ask_everybody(members, [block], deadline)
    state, why, age_s = _state(members, block, deadline)
    steps, passed_over = ([*_home(client, members), _origin(info)], []) if members.alone else _order(
        client, members, block
    )  # fmt: skip
    return Explanation(block, state, why, age_s, steps, passed_over, _read(client, members, block, deadline))


# What the nodes say


def _state(members: Members, block: Block, deadline: float) -> tuple[str, str, int | None]:
    holders = block.good_holders
    owners = [node_id for node_id in holders if node_id in block.acting]
    if owners:
        return "held", f"held by {len(owners)} of {len(block.acting)} owners", None
    if holders:
        return "near", f"held by {', '.join(holders)}, but by none of its owners", None
    ranked = sorted(block.endings, key=lambda node_id: (node_id not in block.owners, block.endings[node_id].age_s))
    if ranked:
        ending = block.endings[ranked[0]]
        return ending.reason, f"{ending.reason} at {ranked[0]}: {ENDINGS.get(ending.reason, '')}", ending.age_s
    other = _other_version(members, block, deadline)
    if other is not None:
        return "other version", other, None
    silent = [node_id for node_id in block.owners if node_id in members.silent]
    doubt = f"; {', '.join(silent)} could not be asked" if silent else ""
    return "never stored", f"no node remembers it{doubt}", None


def _other_version(members: Members, block: Block, deadline: float) -> str | None:
    """Said, if the nodes know this URL in another version than the one asked for."""
    info = block.info
    replies = members.ask_all(holding.KIND, holding.Request([], urls=[info.origin]), deadline)
    others: dict[bytes, holding.Version] = {}
    for reply in replies.values():
        others |= {
            version.fingerprint: version
            for version in reply.versions
            if (version.etag, version.size) != (info.etag, info.size)
        }
    if not others:
        return None
    keys_of = {version: keys.block_key(version.fingerprint, block.number) for version in others.values()}
    request = holding.Request(list(keys_of.values()))
    held = members.ask_all(holding.KIND, request, deadline)
    texts: list[str] = []
    for place, version in enumerate(keys_of):
        holders = [node_id for node_id, reply in held.items() if reply.states[place]]
        texts.append(f"version {version.etag} ({version.size} bytes), held by {', '.join(holders) or 'nobody'}")
    return f"{'; '.join(texts)}; the origin now has {info.etag} ({info.size} bytes)"


# Whom this process would ask


def _home(client: Client, members: Members) -> list[Step]:
    routed = client._routed
    terms = client.terms()
    if terms is None or not (routed.local or members.alone):
        return []
    how = "the only node"
    if routed.local:
        how = (
            f"{'shares its memory with' if terms.grants else 'is on the machine of'} this process: asked for everything"
        )
    reasons = [how] if members.alone else [how, "brings what it lacks from the owners below"]
    return [Step(terms.node, DISTANCES[members.distance(_node(members, terms.node))], reasons)]


def _origin(info: ObjectInfo) -> Step:
    return Step(None, "origin", [f"when no node gives it: {info.origin}"])


def _node(members: Members, node_id: str) -> view.Node:
    return members.node(node_id) or view.Node(node_id, (), 0)


def _order(client: Client, members: Members, block: Block) -> tuple[list[Step], list[Step]]:
    """Who is asked, in order, and who is passed over."""
    now_ns = time.monotonic_ns()
    count = block.info.replica_count
    steps = _home(client, members)
    with members.router_lock:
        known = members.router
        of = known.view
        assert of is not None
        attempts = known.candidates(block.key, count, now_ns)
        for attempt in attempts:
            if attempt.place is None:
                continue
            node = of.nodes[attempt.place]
            reasons = [*_holding(block, node), *_standing(members, block, node, now_ns)]
            if len(steps) == 0 and len(attempts) > 2:
                reasons.append(f"the next is asked as well after {known.hedge_ns(node) / 1e6:.3g} ms without an answer")
            steps.append(Step(node.id, DISTANCES[attempt.distance], reasons))
        asked = {step.node_id for step in steps}
        passed_over: list[Step] = []
        for node_id in _line(of, block.key, known.replicas(count) + router.STAND_INS):
            node = _node(members, node_id)
            peer = known.peers.get(node_id)
            if node_id in asked:
                continue
            if node.status != "ready":
                why = [f"{node.status}: owns nothing any more"]
            elif peer is not None and peer.is_open(now_ns):
                pause_s = (peer.retry_at_ns - now_ns) / 1e9
                why = [f"failed {peer.failure_count} times in a row: left alone for {pause_s:.1f} s more"]
            else:
                continue
            passed_over.append(Step(node_id, DISTANCES[members.distance(node)], [*why, *_holding(block, node)]))
    return [*steps, _origin(block.info)], passed_over


def _line(of: view.View, key: bytes, count: int) -> list[str]:
    """Ids of those who would own it if all nodes were ready."""
    everybody = [msgspec.structs.replace(node, status="ready") for node in of.nodes]
    would = placement.Placement(view.make(of.epoch, everybody, of.replica_count), view.REPLICA_COUNT_MAX)
    return [would.view.nodes[place].id for place in would.owners_of(key)[:count]]


def _holding(block: Block, node: view.Node) -> list[str]:
    return ["holds it" if block.is_held_by(node.id) else "does not hold it"]


def _standing(members: Members, block: Block, node: view.Node, now_ns: int) -> list[str]:
    """What ranks it at its distance."""
    reasons: list[str] = []
    if node.id in block.owners:
        reasons.append(f"owner {block.owners.index(node.id) + 1} of {len(block.owners)}")
    else:
        reasons.append("in line after the owners")
    if node.id in members.silent:
        reasons.append(f"does not answer: {members.silent[node.id]}")
    peer = members.router.peers.get(node.id)
    if peer is None:
        return reasons
    if peer.load:
        reasons.append(f"load {peer.load:.2f}")
    if peer.in_flight:
        reasons.append(f"{peer.in_flight} requests of this process under way")
    if peer.failure_count and now_ns - peer.failed_at_ns <= routing.FAILURE_MEMORY_NS:
        ago_s = (now_ns - peer.failed_at_ns) / 1e9
        reasons.append(f"failed {peer.failure_count} times, last {ago_s:.0f} s ago")
    return reasons


# The read


def _read(client: Client, members: Members, block: Block, deadline: float) -> Trace:
    piece = Piece(block.info, block.number, 0, 1, memoryview(bytearray(1)), 0)
    hits = client.stats().hits
    before = dict(hits)
    started = time.perf_counter()
    try:
        errors = client._reading.read([piece], deadline)
    except ShoalError as error:
        errors = {0: error}
    milliseconds = (time.perf_counter() - started) * 1e3
    if not piece.done:
        return Trace(None, "", "", milliseconds, str(errors.get(0, "no byte came")))
    door = next((name for name, count in hits.items() if count > before[name]), "memory")
    home = members.nodes[0].id if members.alone else client._routed.home_id
    node_id = None if door == "direct" else piece.node_id or home
    return Trace(node_id, TIERS.get(door, door), door, milliseconds)

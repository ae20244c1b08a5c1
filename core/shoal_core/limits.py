"""Every bound in one place, each with its reason; their relations are asserted at the end.

A number that limits memory, time or fan-out anywhere in Shoal is defined here or in the configuration, nowhere else.
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

PAGE_BYTES = 64 * KIB
"""Unit of checking. One xxh3 digest (8 bytes) per page is 0.012 % of the payload; hashing a page costs about 2 us."""

DIGEST_BYTES = 8
"""xxh3_64. The fence against corruption, not against an adversary who can write to the node's memory."""

BLOCK_BYTES_DEFAULT = 4 * MIB
"""Large enough that per-block Python (tens of us) is a few percent of moving it at 10 GB/s."""

BLOCK_BYTES_MIN = 512
BLOCK_BYTES_MAX = 16 * MIB

SLAB_BYTES_MAX = 16 * MIB
SLAB_SLOTS_MAX = 1 << 20
"""slot = slab * SLAB_SLOTS_MAX + index in the slab."""

SLOT_BYTES_MIN = 256
"""Smallest DRAM slot: an index entry costs about 100 bytes, so smaller payloads would be mostly index."""

INDEX_ENTRY_BYTES = 128
"""What one block may cost beside its payload. Charged against the DRAM budget when a slab is assigned."""

SEGMENT_BYTES_FIRST = 64 * MIB
SEGMENT_BYTES_MAX = 1 * GIB
"""Segments double from the first size to the largest: a small cache stays small, a large one has few descriptors."""

FRAME_BODY_BYTES_MAX = 8 * MIB
"""The control part of a frame. A batch of BATCH_ITEMS_MAX items with digests stays below it."""

FRAME_PAYLOAD_BYTES_MAX = 256 * MIB
"""Bulk bytes behind one frame: a batch's worth of blocks; a longer read is cut into several requests."""

BATCH_ITEMS_MAX = 4096
BATCH_BYTES_MAX = 64 * MIB
"""What a client asks for in one `get`: enough to amortise the round trip, little enough to bound a retry."""

PARTS_AHEAD = 4
PART_ITEMS = 64
PART_BYTES = 16 * MIB
"""A batch whose bytes come through a connection is asked for in parts, so many of them ahead of what was received:
small enough that both sides work at once (blocks are sent while the next are filled), large enough that a part's own
cost does not show."""

DIRECT_READS_MAX = 8
"""Reads of one process that go around the cache to one origin at once."""

HOPS_MAX = 2
"""Nodes that pass a request for a block on. A node that was asked by so many asks no other."""

OFFER_BLOCKS_MAX = 1024
"""Blocks in one offer from node to node."""

WARM_FACTOR = 4
"""While what is asked for is mostly in a node's memory, small ranges may touch so many times more blocks at once than
the node could fill."""

LIKELY_BLOCKS_MAX = 32
"""Blocks granted beyond what was asked for, to a reader who goes through an object: a message each is saved."""

READ_AHEAD_BYTES = 64 * MIB
"""How far behind the current batch of a long read the node is asked to fill already."""

LEASES_PER_CLIENT_MAX = 1 << 17
"""Leases one connection may hold; beyond it reads are copies."""

LEASED_FRACTION_DEFAULT = 0.75
"""Of the DRAM budget, per client. The rest stays evictable even if that client never answers a revoke."""

VICTIM_SKIPS_MAX = 64
"""Leased or busy candidates an eviction passes over before it gives up and asks for revokes."""

REVOKE_BATCH_MAX = 256

CLIENTS_MAX = 4096
"""Connections of one node: one thread each."""

VOLUMES_MAX = 4096
"""Volumes of pods with a socket of their own on one node: kubelets run some hundred pods."""

FILLS_IN_FLIGHT_MAX = 256
"""Blocks being filled at once; bounds the memory of fills, which comes on top of the budget."""

FILLS_PLANNED_MAX = 128
"""Blocks that plans may have under way: what is asked for now always finds as many left."""

PLAN_USES_MAX = 4096
PLAN_BLOCKS_MAX = 1 << 16
"""Of one plan; its blocks are gone through a few hundred at a time, so that reads come between."""

STREAMS_MAX = 1024
"""Loaders' streams that one space follows; who said nothing for longest goes first."""

STREAM_POSITION_MAX = 1 << 62
STREAM_WAIT_S_MAX = 1e6
"""Beyond it a plan is an error: it would spoil the sum."""

OBJECTS_REMEMBERED_MAX = 1 << 16
"""Resolved objects (URL, size, etag) a node keeps; least recently used go first; a client resolves again."""

RESOLVE_FRESH_S = 60.0
"""How long a resolved bare URL is trusted before the next open asks the origin again."""

DEADLINE_S_DEFAULT = 60.0
DEADLINE_S_MAX = 3600.0

TOUCH_INTERVAL_S = 0.1
"""Clients report hits under held grants this often, so that eviction sees them."""

LINGER_S_DEFAULT = 600.0
"""How long an embedded node outlives its last client."""

URL_BYTES_MAX = 8 * KIB
"""S3 keys end at 1,024 bytes; the rest is room for other schemes."""

OBJECT_BYTES_MAX = 1 << 50
"""No origin has larger ones; what a client claims beyond it is an error of its own."""

TTL_S_MAX = 1 << 31
"""68 years: times are kept as 32 bits of seconds."""

WIRE_VERSION = 1

assert PAGE_BYTES <= BLOCK_BYTES_DEFAULT <= BLOCK_BYTES_MAX <= SLAB_BYTES_MAX
assert SLAB_BYTES_MAX // SLOT_BYTES_MIN <= SLAB_SLOTS_MAX
assert SEGMENT_BYTES_FIRST >= SLAB_BYTES_MAX and SEGMENT_BYTES_MAX % SEGMENT_BYTES_FIRST == 0
assert BATCH_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX and BLOCK_BYTES_MAX <= BATCH_BYTES_MAX
# One item: its digests (at most one per page of the batch) and about 64 bytes of numbers.
assert BATCH_ITEMS_MAX * (64 + DIGEST_BYTES) + BATCH_BYTES_MAX // PAGE_BYTES * DIGEST_BYTES < FRAME_BODY_BYTES_MAX
assert FILLS_PLANNED_MAX < FILLS_IN_FLIGHT_MAX
assert PLAN_USES_MAX * 128 < FRAME_BODY_BYTES_MAX
assert REVOKE_BATCH_MAX <= LEASES_PER_CLIENT_MAX

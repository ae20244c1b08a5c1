"""Who asks, and what they may read: claims, and tokens that prove them. Pure.

A pool has one secret key. Whoever has it can sign a token; a node that has it believes what a token claims until it
expires, and asks nobody. A token is three parts joined by dots: the version of this format, the claims as JSON, and
their HMAC-SHA256 under the key, the last two in base64url. It is no secret from its bearer, who may look into it, but
whoever sees it can use it: tokens live minutes, and travel only between pods and nodes of one pool.

A reader may read the data sets that its claims name, and keep derived objects of its own namespace; a peer is another
node of the pool, an operator is who runs it: both may do everything. Claims say which names the bearer uses: it reads
`shoal://images/...`, the node knows `team-a.images`.

A Unix socket that was made for one reader needs no token: there the socket is the identity, and a file beside it says
whose it is (`VolumeAccess`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal

import msgspec

from shoal_core import names
from shoal_core.errors import BadRequest, Forbidden, TokenExpired

Role = Literal["reader", "peer", "operator"]

VERSION = "shoal1"

KEY_BYTES_MIN = 16
"""A shorter key could be guessed. Keys that are made for a pool have 32 random bytes."""

TOKEN_BYTES_MAX = 64 << 10
"""Claims that name DATASETS_MAX data sets by the longest names stay below it."""

VOLUME_BYTES_MAX = 64 << 10
"""Of a file that says whose a volume is."""

DATASETS_MAX = 128
"""Data sets of one reader."""


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token says. A field that this version does not know makes it malformed: it might be a restriction."""

    pool: str
    role: Role
    who: str
    """For people: namespace/pod, or the name of a node."""
    namespace: str = ""
    """Of a reader."""
    datasets: dict[str, str] = {}
    """What a reader may read: the names that nodes know, by its own."""
    expires_s: int = 0
    """Seconds since 1970; from then on the token is worth nothing."""


class VolumeAccess(msgspec.Struct, frozen=True):
    """access.json of a volume: whose its socket is. Written by who publishes the volume, read by the node."""

    who: str
    namespace: str
    datasets: dict[str, str]
    pod_uid: str = ""


def sign(key: bytes, claims: Claims) -> str:
    """A token. BadRequest for claims that no node would take."""
    if (wrong := _wrong(claims)) is not None:
        raise BadRequest(f"claims: {wrong}")
    payload = msgspec.json.encode(claims)
    return f"{VERSION}.{_text(payload)}.{_text(_mac(key, payload))}"


def verify(key: bytes, token: str, now_s: float, pool: str = "") -> Claims:
    """What the token claims, proved. Forbidden says why it is worth nothing; TokenExpired that it was once.

    `pool`: the only one whose tokens count; empty: whatever pool has that key.
    """
    payload, mac = _parts(token)
    if not hmac.compare_digest(mac, _mac(key, payload)):
        raise Forbidden("the token was signed with another key than this pool's")
    claims = _claims(payload)
    if pool and claims.pool != pool:
        raise Forbidden(f"the token is of pool {claims.pool!r}, and this is {pool!r}")
    if now_s >= claims.expires_s:
        raise TokenExpired(f"the token of {claims.who} expired {int(now_s - claims.expires_s)} s ago")
    return claims


def peek(token: str) -> Claims:
    """What the token claims, unproved: for its bearer, who wants to know when it ends. Forbidden if it is malformed."""
    return _claims(_parts(token)[0])


def parse_volume(data: bytes) -> VolumeAccess:
    """The identity of a volume; BadRequest says what is wrong with the file."""
    if len(data) > VOLUME_BYTES_MAX:
        raise BadRequest(f"more than {VOLUME_BYTES_MAX} bytes")
    try:
        found = msgspec.json.decode(data, type=VolumeAccess)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"not the identity of a volume: {error}") from None
    if (wrong := _wrong_reader(found.who, found.namespace, found.datasets)) is not None:
        raise BadRequest(wrong)
    return found


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _parts(token: str) -> tuple[bytes, bytes]:
    """Payload and HMAC."""
    version, *parts = token.split(".") if len(token) <= TOKEN_BYTES_MAX else [""]
    if version != VERSION or len(parts) != 2:
        raise Forbidden(f"the token is malformed: it is not {VERSION}.CLAIMS.SIGNATURE")
    try:
        return _bytes(parts[0]), _bytes(parts[1])
    except (binascii.Error, ValueError):
        raise Forbidden("the token is malformed: it is not base64url") from None


def _claims(payload: bytes) -> Claims:
    try:
        claims = msgspec.json.decode(payload, type=Claims)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Forbidden(f"the token is malformed: {error}") from None
    if (wrong := _wrong(claims)) is not None:
        raise Forbidden(f"the token is malformed: {wrong}")
    return claims


def _wrong(claims: Claims) -> str | None:
    if claims.role == "reader":
        return _wrong_reader(claims.who, claims.namespace, claims.datasets)
    return None if claims.who else "who: it is empty"


def _wrong_reader(who: str, namespace: str, datasets: Mapping[str, str]) -> str | None:
    if not who:
        return "who: it is empty"
    if not names.is_label(namespace):
        return f"namespace: {namespace!r} is not the name of one"
    if len(datasets) > DATASETS_MAX:
        return f"datasets: {len(datasets)} of them; at most {DATASETS_MAX}"
    for own, known in datasets.items():
        if not names.is_dataset(own) or not names.is_dataset(known):
            return f"datasets: {own!r}: {known!r}: {names.DATASET_RULE}"
    return None


# In base64, a third longer; two names of 127 characters each, with JSON's six characters around them.
assert DATASETS_MAX * (2 * 127 + 6) * 4 // 3 + 4096 < TOKEN_BYTES_MAX

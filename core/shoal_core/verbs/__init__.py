"""The verbs: one module each, and this one table that joins them. A new verb is one file and one row.

Each module has `KIND`, `Request` and `Reply` (msgspec structs, encoded as msgpack arrays). Every verb works on a batch.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import msgspec

from shoal_core import frame
from shoal_core.errors import BadRequest, ProtocolError, ShoalError, from_wire, to_wire
from shoal_core.verbs import (
    complain,
    dataset,
    drain,
    evict,
    fetch,
    get,
    hello,
    holding,
    inspect,
    listing,
    map,
    offer,
    plan,
    release,
    resolve,
    revoke,
    stat,
    store,
    token,
    view,
)  # fmt: skip

VERBS: dict[int, ModuleType] = {
    verb.KIND: verb
    for verb in (
        hello, resolve, get, release, map, revoke, listing, inspect, evict, complain, dataset, stat, plan, store,
        fetch, offer, view, holding, drain, token,
    )
}  # fmt: skip


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """Body of an error reply."""

    code: int
    text: str


_encoder = msgspec.msgpack.Encoder()
_requests = {kind: msgspec.msgpack.Decoder(verb.Request) for kind, verb in VERBS.items()}
_replies = {kind: msgspec.msgpack.Decoder(verb.Reply) for kind, verb in VERBS.items()}
_failure = msgspec.msgpack.Decoder(Failure)


def encode(body: Any) -> bytes:
    """msgpack of one request or reply. BadRequest for text that is none: a lone surrogate, from a file's odd name."""
    try:
        return _encoder.encode(body)
    except UnicodeEncodeError as error:
        raise BadRequest(f"{error.object!r:.200} is not valid Unicode") from None


def decode_request(kind: int, body: bytes) -> Any:
    """The `Request` of verb `kind`; ProtocolError names the verb when the body is not one."""
    decoder = _requests.get(kind)
    if decoder is None:
        raise ProtocolError(f"unknown verb {kind}; this node knows {sorted(VERBS)}")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{name(kind)}: {error}") from None


def decode_reply(kind: int, header: frame.Header, body: bytes) -> Any:
    """The `Reply` of verb `kind`, or the error that the other side sent, raised."""
    try:
        if header.kind == frame.FAILURE:
            failure = _failure.decode(body)
            raise from_wire(failure.code, failure.text)
        if header.kind != kind | frame.REPLY:
            raise ProtocolError(f"reply of kind {header.kind} to {name(kind)}")
        return _replies[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"reply to {name(kind)}: {error}") from None


def failure(error: BaseException) -> bytes:
    """Body of the error reply for `error`."""
    code, text = to_wire(error)
    return _encoder.encode(Failure(code, text[:2000].encode(errors="backslashreplace").decode()))


def name(kind: int) -> str:
    """The verb's name, for messages."""
    verb = VERBS.get(kind)
    return verb.__name__.rpartition(".")[2] if verb else f"verb {kind}"


__all__ = ["VERBS", "Failure", "ShoalError", "decode_reply", "decode_request", "encode", "failure", "name"]

"""Bodies that are nearly right, and text that is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core import errors, frame, verbs
from shoal_core.verbs import get, listing, plan, release, resolve, revoke, store

BODIES: list[tuple[int, Any]] = [
    (
        get.KIND,
        get.Request([bytes(16)], [get.Item(0, 1, 2, 3)], [get.Ahead(0, 1, 2)], 100, False, [(1, 2)], [(1, 2, 3)]),
    ),
    (resolve.KIND, resolve.Request([resolve.Wanted("file:///x", 5, "etag"), resolve.Wanted("file:///y")], 100)),
    (release.KIND, release.Request([(1, 2), (3, 4)], [(5, 6, 7)])),
    (revoke.KIND, revoke.Request([(1, 2)])),
    (listing.KIND, listing.Request("file:///x", 0, 100)),
    (plan.KIND, plan.Request(bytes(16), 5, [bytes(16)], [plan.Use(0, 1, 2, 30)], 60, 40, 0.5, 1)),
    (store.KIND, store.Request(bytes(16), 1, b"block", 100)),
]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(BODIES), st.data())
def test_a_body_with_one_byte_wrong_is_a_value_or_a_protocol_error(body: tuple[int, Any], data: st.DataObject) -> None:
    kind, request = body
    encoded = bytearray(verbs.encode(request))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    for variant in (bytes(encoded), bytes(encoded[:cut]), bytes(encoded) + b"\x00"):
        try:
            decoded = verbs.decode_request(kind, variant)
        except errors.ProtocolError:
            continue
        assert isinstance(decoded, type(request))


def test_text_that_is_no_unicode_is_the_callers_mistake() -> None:
    with pytest.raises(errors.BadRequest, match="Unicode"):
        verbs.encode(listing.Request("file:///bad\udcff", 0, 100))


def test_an_error_about_such_text_still_crosses_the_wire() -> None:
    body = verbs.failure(errors.NotFound("file:///bad\udcff: no such object"))
    with pytest.raises(errors.NotFound, match="no such object"):
        verbs.decode_reply(get.KIND, frame.Header(1, frame.FAILURE, 1, len(body), 0), body)

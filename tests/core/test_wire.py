"""Frames and verbs: what goes in comes out, and nothing that comes in can do worse than a ProtocolError."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core import errors, frame, limits, verbs
from shoal_core.errors import ProtocolError
from shoal_core.verbs import get, hello

HEADER = st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=300))


def drain(decoder: frame.Decoder) -> list[tuple[frame.Header, bytes]]:
    frames: list[tuple[frame.Header, bytes]] = []
    while (got := decoder.next_frame()) is not None:
        frames.append(got)
    return frames


@settings(deadline=None)
@given(st.lists(HEADER, min_size=1, max_size=5), st.data())
def test_frames_survive_any_split(sent: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame.encode(kind, request, body) for kind, request, body in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = frame.Decoder()
    got: list[tuple[frame.Header, bytes]] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[start:end])
        got += drain(decoder)
    assert [(header.kind, header.request, body) for header, body in got] == sent
    assert all(header.version == limits.WIRE_VERSION for header, _ in got)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=64), max_size=6), st.booleans())
def test_any_bytes_are_frames_or_a_protocol_error(chunks: list[bytes], begin_well: bool) -> None:
    decoder = frame.Decoder()
    fed = 0
    try:
        for chunk in [b"SH", *chunks] if begin_well else chunks:
            decoder.feed(chunk)
            fed += len(chunk)
            taken = sum(frame.HEADER_BYTES + len(body) for _, body in drain(decoder))
            assert taken <= fed
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    ("body_bytes", "payload_bytes"),
    [(limits.FRAME_BODY_BYTES_MAX + 1, 0), (0, limits.FRAME_PAYLOAD_BYTES_MAX + 1), (2**32 - 1, 2**32 - 1)],
)
def test_a_length_beyond_the_limit_is_refused_before_it_is_waited_for(body_bytes: int, payload_bytes: int) -> None:
    decoder = frame.Decoder()
    decoder.feed(frame.HEADER.pack(b"SH", 1, 3, 1, body_bytes, payload_bytes))
    with pytest.raises(ProtocolError, match="too large"):
        decoder.next_frame()
    with pytest.raises(ProtocolError, match="too large"):
        frame.encode(3, 1, b"", limits.FRAME_PAYLOAD_BYTES_MAX + 1)


def test_payload_is_not_taken_for_the_next_frame() -> None:
    decoder = frame.Decoder()
    decoder.feed(frame.encode(3, 1, b"body", payload_bytes=5) + b"paylo" + frame.encode(4, 2, b""))
    header, body = decoder.next_frame() or pytest.fail("no frame")
    assert (header.kind, body, decoder.payload_left) == (3, b"body", 5)
    assert decoder.next_frame() is None
    assert decoder.take_payload() == b"paylo"
    assert [header.kind for header, _ in drain(decoder)] == [4]


def test_every_verb_has_its_own_kind_below_the_reply_bit() -> None:
    assert all(kind == verb.KIND and 0 < kind < frame.REPLY for kind, verb in verbs.VERBS.items())
    assert len({verbs.name(kind) for kind in verbs.VERBS}) == len(verbs.VERBS)


def value_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a struct's type, from its fields."""
    numbers = st.integers(-(2**63), 2**63 - 1)
    text, raw = st.text(max_size=20), st.binary(max_size=20)
    info = msgspec.inspect.type_info(kind)

    def build(of: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
        match of:
            case msgspec.inspect.StructType():
                return st.tuples(*(build(field.type) for field in of.fields)).map(lambda values: of.cls(*values))
            case msgspec.inspect.ListType():
                return st.lists(build(of.item_type), max_size=3)
            case msgspec.inspect.TupleType():
                return st.tuples(*(build(item) for item in of.item_types))
            case msgspec.inspect.VarTupleType():
                return st.lists(build(of.item_type), max_size=3).map(tuple)
            case msgspec.inspect.LiteralType():
                return st.sampled_from(of.values)
            case msgspec.inspect.UnionType():
                return st.one_of(*(build(member) for member in of.types))
            case msgspec.inspect.DictType():
                return st.dictionaries(text, st.one_of(numbers, text), max_size=3)
            case msgspec.inspect.IntType():
                return numbers
            case msgspec.inspect.FloatType():
                return st.floats(allow_nan=False)
            case msgspec.inspect.StrType():
                return text
            case msgspec.inspect.BytesType():
                return raw
            case msgspec.inspect.BoolType():
                return st.booleans()
            case _:
                assert isinstance(of, msgspec.inspect.NoneType), of
                return st.none()

    return build(info)


@pytest.mark.parametrize("kind", sorted(verbs.VERBS))
def test_requests_and_replies_come_back_as_they_were(kind: int) -> None:
    verb = verbs.VERBS[kind]

    @settings(deadline=None, max_examples=30)
    @given(value_of(verb.Request), value_of(verb.Reply))
    def check(request: Any, reply: Any) -> None:
        assert verbs.decode_request(kind, verbs.encode(request)) == request
        header = frame.Header(1, kind | frame.REPLY, 1, 0, 0)
        assert verbs.decode_reply(kind, header, verbs.encode(reply)) == reply

    check()


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*verbs.VERBS, 0, 99, 127]), st.binary(max_size=80))
def test_any_body_is_a_value_or_a_protocol_error(kind: int, body: bytes) -> None:
    try:
        request = verbs.decode_request(kind, body)
    except ProtocolError as error:
        assert verbs.name(kind) in str(error)  # noqa: PT017 either outcome is right
    else:
        assert isinstance(request, verbs.VERBS[kind].Request)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(verbs.VERBS)), st.integers(0, 255), st.binary(max_size=80))
def test_any_reply_is_a_value_or_an_error_of_ours(kind: int, reply_kind: int, body: bytes) -> None:
    try:
        verbs.decode_reply(kind, frame.Header(1, reply_kind, 1, len(body), 0), body)
    except errors.ShoalError:
        pass


def test_errors_cross_the_wire_as_themselves() -> None:
    for name in dir(errors):
        cls = getattr(errors, name)
        if isinstance(cls, type) and issubclass(cls, errors.ShoalError):
            header = frame.Header(1, frame.FAILURE, 1, 0, 0)
            with pytest.raises(cls, match="which says why") as caught:
                verbs.decode_reply(get.KIND, header, verbs.failure(cls("a text, which says why")))
            assert type(caught.value) is cls
    assert errors.to_wire(KeyError("x")) == (1, "KeyError: 'x'")
    assert type(errors.from_wire(200, "from the future")) is errors.ShoalError


def test_words_of_the_language_catch_our_errors() -> None:
    pairs = {
        errors.NotFound: FileNotFoundError, errors.Forbidden: PermissionError, errors.DeadlineExceeded: TimeoutError,
        errors.NodeGone: ConnectionError, errors.BadRequest: ValueError, errors.ConfigError: ValueError,
    }  # fmt: skip
    assert all(issubclass(ours, theirs) for ours, theirs in pairs.items())


def test_a_whole_batch_fits_a_frame() -> None:
    answers = [get.Inline(1, 2**24, 2**26, bytes(8), 2**32 - 1, 2**32 - 1)] * limits.BATCH_ITEMS_MAX
    largest = verbs.encode(get.Reply([*answers]))
    assert len(largest) + limits.BATCH_BYTES_MAX // limits.PAGE_BYTES * 8 < limits.FRAME_BODY_BYTES_MAX
    assert frame.encode(get.KIND | frame.REPLY, 1, largest)
    assert hello.KIND == 1  # the first byte of a conversation never changes its meaning

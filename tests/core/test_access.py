"""Tokens: what is signed is believed until it expires, and nothing else is; the identities that volumes have."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core import access, errors, names
from shoal_core.errors import BadRequest, Forbidden, TokenExpired

KEY = b"k" * 32
NOW_S = 1_800_000_000
READER = access.Claims("pool", "reader", "team-a/pod", "team-a", {"images": "team-a.images"}, NOW_S + 600)


def refusal(token: str, now_s: float = NOW_S, pool: str = "", key: bytes = KEY) -> str:
    with pytest.raises(Forbidden) as caught:
        access.verify(key, token, now_s, pool)
    return str(caught.value)


def encoded(claims: dict[str, Any], key: bytes = KEY) -> str:
    """A token with these claims, whatever they are."""
    payload = json.dumps(claims).encode()
    parts = (base64.urlsafe_b64encode(data).rstrip(b"=").decode() for data in (payload, access._mac(key, payload)))
    return ".".join(("shoal1", *parts))


@pytest.mark.parametrize(
    "claims",
    [
        READER,
        access.Claims("", "peer", "node-1", expires_s=NOW_S + 1),
        access.Claims("pool", "operator", "shoal-operator", expires_s=NOW_S + 1),
        access.Claims("pool", "reader", "a/b", "a", {}, NOW_S + 1),
    ],
)
def test_what_is_signed_is_believed(claims: access.Claims) -> None:
    token = access.sign(KEY, claims)
    assert token.startswith("shoal1.") and token.isascii() and " " not in token
    assert access.verify(KEY, token, NOW_S) == access.verify(KEY, token, NOW_S, claims.pool) == claims
    assert access.peek(token) == claims


def test_a_token_ends_at_its_second() -> None:
    token = access.sign(KEY, READER)
    assert access.verify(KEY, token, NOW_S + 599.9) == READER
    with pytest.raises(TokenExpired, match="the token of team-a/pod expired 12 s ago"):
        access.verify(KEY, token, NOW_S + 612)
    assert access.peek(token).expires_s == NOW_S + 600, "its bearer may look all the same"


def test_another_key_or_pool_is_refused() -> None:
    token = access.sign(KEY, READER)
    assert refusal(token, key=b"x" * 32) == "the token was signed with another key than this pool's"
    assert refusal(token, pool="other") == "the token is of pool 'pool', and this is 'other'"
    assert access.verify(KEY, token, NOW_S, "pool") == READER


@given(position=st.integers(0, 10_000), by=st.integers(1, 255))
def test_no_changed_character_is_believed(position: int, by: int) -> None:
    token = access.sign(KEY, READER)
    position %= len(token)
    changed = token[:position] + chr((ord(token[position]) + by) % 128) + token[position + 1 :]
    try:
        assert access.verify(KEY, changed, NOW_S) == READER  # the last bits of base64 may say nothing
    except Forbidden:
        return


@given(st.text(max_size=200) | st.text(alphabet="shoal1.AZaz09-_=", max_size=80).map(lambda text: "shoal1." + text))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    assert "malformed" in refusal(text) or "another key" in refusal(text)


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "malformed: it is not shoal1.CLAIMS.SIGNATURE"),
        ("shoal2.e30.e30", "malformed: it is not shoal1.CLAIMS.SIGNATURE"),
        ("shoal1.e30", "malformed: it is not"),
        ("shoal1.e30.e30.e30", "malformed: it is not"),
        ("shoal1.!!.e30", "malformed: it is not base64url"),
        ("shoal1.e.e30", "malformed: it is not base64url"),
        ("x" * (access.TOKEN_BYTES_MAX + 1), "malformed: it is not"),
        (encoded({}), "malformed: Object missing required field"),
        (encoded({"pool": "p", "role": "king", "who": "w"}), "malformed: Invalid enum value 'king'"),
        (encoded({"pool": "p", "role": "peer", "who": "w", "only_on": "x"}), "unknown field `only_on`"),
        (encoded({"pool": "p", "role": "peer", "who": ""}), "malformed: who: it is empty"),
        (encoded({"pool": "p", "role": "reader", "who": "w"}), "malformed: namespace: '' is not the name of one"),
        (
            encoded({"pool": "p", "role": "reader", "who": "w", "namespace": "a", "datasets": {"x": "(derived)"}}),
            "malformed: datasets: 'x': '(derived)': a name is a DNS label",
        ),
    ],
)
def test_refusals_say_why(token: str, says: str) -> None:
    assert says in refusal(token)


def test_nobody_signs_what_no_node_would_take() -> None:
    with pytest.raises(BadRequest, match="namespace: 'Team A' is not the name of one"):
        access.sign(KEY, access.Claims("pool", "reader", "w", "Team A"))
    too_many = {f"d{number}": "a.b" for number in range(access.DATASETS_MAX + 1)}
    with pytest.raises(BadRequest, match="at most 128"):
        access.sign(KEY, access.Claims("pool", "reader", "w", "a", too_many))


def test_the_most_that_claims_can_say_fits_a_token() -> None:
    long = "n" * 63 + "." + "d" * 59
    most = {f"{long}{number:03}": f"{long}{number:03}" for number in range(access.DATASETS_MAX)}
    claims = access.Claims("pool", "reader", "w" * 300, "n" * 63, most, NOW_S)
    assert access.verify(KEY, access.sign(KEY, claims), NOW_S - 1) == claims


def test_an_expired_token_is_its_own_kind_of_forbidden() -> None:
    code, text = errors.to_wire(TokenExpired("over"))
    again = errors.from_wire(code, text)
    assert type(again) is TokenExpired and isinstance(again, Forbidden) and str(again) == "over"


def test_a_volume_says_whose_it_is() -> None:
    identity = {"who": "team-a/pod", "namespace": "team-a", "pod_uid": "1", "datasets": {"images": "team-a.images"}}
    found = access.parse_volume(json.dumps({**identity, "later": True}).encode())
    assert found == access.VolumeAccess("team-a/pod", "team-a", {"images": "team-a.images"}, "1")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not the identity of a volume"),
        (b"\xff", "not the identity of a volume"),
        (b"[" * 10_000, "not the identity of a volume"),
        (b"{}", "missing required field `who`"),
        (b'{"who": "", "namespace": "a", "datasets": {}}', "who: it is empty"),
        (b'{"who": "w", "namespace": "../b", "datasets": {}}', "namespace: '../b'"),
        (b'{"who": "w", "namespace": "a", "datasets": {"a b": "c"}}', "datasets: 'a b': 'c'"),
        (b" " * (access.VOLUME_BYTES_MAX + 1), "more than 65536 bytes"),
    ],
)
def test_a_volume_that_makes_no_sense(content: bytes, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        access.parse_volume(content)
    assert says in str(caught.value)


def test_names_of_data_sets() -> None:
    assert all(map(names.is_dataset, ("images", "team-a.images", "a", "0.0", "x" * 63 + "." + "y" * 63)))
    wrong = ("", ".", "a.", ".a", "a.b.c", "A", "a_b", "-a", "a-", "a..b", "x" * 64, "a/b", "a\n", "default\n")
    assert not any(map(names.is_dataset, wrong))
    assert names.is_label("team-a") and not names.is_label("team.a")

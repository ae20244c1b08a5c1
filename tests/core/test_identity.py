"""Keys, fingerprints, digests: what makes bytes the same bytes."""

from __future__ import annotations

import itertools

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core import digests, environment, keys, limits


def fingerprint(
    space: bytes = b"spaceuid", url: str = "s3://b/k", version: str = '"e"', size: int = 9, block: int = 4096
) -> bytes:
    return keys.object_fingerprint(space, url, version, size, block)


def test_everything_that_must_match_is_in_the_fingerprint() -> None:
    variants = [
        fingerprint(), fingerprint(space=b"spaceuix"), fingerprint(url="s3://b/k2"), fingerprint(version='"f"'),
        fingerprint(size=10), fingerprint(block=8192), fingerprint(url='s3://b/k"e', version='"'),
    ]  # fmt: skip
    assert len(set(variants)) == len(variants)
    assert all(len(value) == keys.FINGERPRINT_BYTES for value in variants)


def test_fingerprints_never_change_between_versions_and_machines() -> None:
    # Written down once: a change here makes every cache of every user cold, and two nodes of two versions disagree.
    assert keys.space_uid("tenant", "default").hex() == "b8d6a5e59174c40b"
    assert fingerprint().hex() == "ba60d69cd7625abdb0fd91e1ff7cebd3"
    assert keys.block_key(fingerprint(), 7).hex() == "a26702015608d967ba3a6ebe5bd0bb42"


def test_parts_cannot_flow_into_each_other() -> None:
    assert keys.space_uid("ab", "c") != keys.space_uid("a", "bc")


@given(st.text(max_size=50), st.text(max_size=50))
def test_any_text_has_a_fingerprint_also_lone_surrogates(url: str, version: str) -> None:
    assert len(fingerprint(url=url + "\udc80", version=version)) == 16


def test_block_keys_differ_by_block_and_object() -> None:
    objects = [fingerprint(), fingerprint(size=10)]
    made = {keys.block_key(of, block) for of, block in itertools.product(objects, range(1000))}
    assert len(made) == 2000


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (4096, 1), (4097, 2), (8192, 2)])
def test_block_count(size: int, count: int) -> None:
    assert keys.block_count(size, 4096) == count


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 5 * limits.PAGE_BYTES + 3), st.integers(0, 255))
def test_a_digest_table_is_one_xxh3_per_page(size: int, fill: int) -> None:
    payload = bytes([fill]) * size
    table = digests.page_digests(memoryview(payload))
    pages = [payload[start : start + limits.PAGE_BYTES] for start in range(0, size, limits.PAGE_BYTES)]
    assert table == b"".join(xxhash.xxh3_64_intdigest(page).to_bytes(8, "little") for page in pages)
    assert len(table) == digests.page_count(size) * limits.DIGEST_BYTES
    assert digests.checksum(table) == xxhash.xxh3_64_intdigest(table)
    assert digests.matches(memoryview(payload), table)


@pytest.mark.parametrize("size", [1, 100, limits.PAGE_BYTES, 4 * limits.MIB, 4 * limits.MIB + 1])
def test_one_flipped_bit_is_seen(size: int) -> None:
    payload = bytearray(size)
    table = digests.page_digests(memoryview(payload))
    for position in {0, size // 2, size - 1}:
        payload[position] ^= 1
        assert not digests.matches(memoryview(payload), table)
        payload[position] ^= 1
    assert digests.matches(memoryview(payload), table)
    assert not digests.matches(memoryview(payload), table[:-8] if size > limits.PAGE_BYTES else table + bytes(8))


def test_origin_settings_are_compared_without_telling_secrets() -> None:
    mine = {"AWS_SECRET_ACCESS_KEY": "s3cret", "HOME": "/a"}
    assert environment.digest(mine) == environment.digest({**mine, "HOME": "/b"})
    assert environment.digest(mine) != environment.digest({**mine, "AWS_ENDPOINT_URL": "http://x"})
    assert environment.digest({"AWS_A": "1", "AWS_B": "2"}) != environment.digest({"AWS_A": "1=2", "AWS_B": ""})
    assert "s3cret" not in environment.digest(mine)

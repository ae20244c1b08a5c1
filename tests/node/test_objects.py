"""What a node remembers of objects, and for how long."""

from __future__ import annotations

from shoal_node.objects import ObjectRecord, Objects


def record(number: int, url: str = "s3://b/k", size: int = 10) -> ObjectRecord:
    return ObjectRecord(bytes([number]) * 16, url, size, f"etag-{number}", 0, 4)


def test_the_least_recently_used_goes_first() -> None:
    objects = Objects(3)
    for number in range(3):
        objects.remember(record(number, f"s3://b/{number}"), 1.0)
    assert objects.get(bytes(16)) is not None
    objects.remember(record(3, "s3://b/3"), 1.0)
    assert len(objects) == 3
    assert objects.get(bytes([1]) * 16) is None
    assert objects.get(bytes(16)) is not None


def test_a_url_resolves_to_its_last_version() -> None:
    objects = Objects()
    objects.remember(record(1), 5.0)
    objects.remember(record(2), 6.0)
    assert objects.resolved(0, "s3://b/k") == (record(2), 6.0)
    assert objects.resolved(1, "s3://b/k") is None, "another space"
    assert objects.get(record(1).fingerprint) == record(1), "readers of the old version go on"


def test_what_a_client_claims_is_no_resolution() -> None:
    objects = Objects()
    objects.remember(record(1), None)
    assert objects.get(record(1).fingerprint) == record(1)
    assert objects.resolved(0, "s3://b/k") is None


def test_a_resolution_whose_record_is_forgotten_is_none() -> None:
    objects = Objects(1)
    objects.remember(record(1), 5.0)
    objects.remember(record(2, "s3://b/other"), None)
    assert objects.resolved(0, "s3://b/k") is None


def test_forgetting_a_version_leaves_a_newer_one() -> None:
    objects = Objects()
    objects.remember(record(1), 5.0)
    objects.remember(record(2), 6.0)
    objects.forget_resolution(record(1))
    assert objects.resolved(0, "s3://b/k") == (record(2), 6.0)
    objects.forget_resolution(record(2))
    assert objects.resolved(0, "s3://b/k") is None
    objects.forget_resolution(record(2))


def test_blocks_of_an_object() -> None:
    assert [record(1, size=10).block_bytes(block) for block in range(3)] == [4, 4, 2]
    assert record(1, size=10).block_count == 3
    assert record(1, size=10).block_bytes(3) <= 0
    assert record(1, size=0).block_count == 0

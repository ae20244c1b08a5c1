"""The S3 server does what tests rely on: conditions, ranges, listings, refusals, an exact account of requests."""

import fsspec
import obstore
import obstore.exceptions
import pytest

from tests.support.s3_server import S3Server

BUCKET = "support-s3-server"
KEY = "folder/e\u0301 \u00e9 %41#?&+ x"


def test_it_serves_ranges_under_a_condition_and_counts_them(s3_server: S3Server) -> None:
    s3_server.put(BUCKET, KEY, bytes(range(100)))
    store = s3_server.store(BUCKET)
    etag = obstore.head(store, KEY)["e_tag"]
    got = obstore.get(store, KEY, options={"range": (10, 20), "if_match": etag}).bytes()
    assert bytes(got) == bytes(range(10, 20))
    assert s3_server.gets(BUCKET, KEY) == 1
    assert s3_server.count("HeadObject", BUCKET, KEY) == 1
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(store, KEY, options={"range": (10, 20), "if_match": '"other"'})


def test_a_changed_object_has_another_etag(s3_server: S3Server) -> None:
    s3_server.put(BUCKET, "changing", b"one")
    before = obstore.head(s3_server.store(BUCKET), "changing")["e_tag"]
    s3_server.put(BUCKET, "changing", b"two")
    assert obstore.head(s3_server.store(BUCKET), "changing")["e_tag"] != before


def test_it_lists_in_order_and_forgets_what_was_deleted(s3_server: S3Server) -> None:
    for name in ("b", "a", "c"):
        s3_server.put(BUCKET, f"listed/{name}", b"x")
    s3_server.delete(BUCKET, "listed/b")
    pages = obstore.list(s3_server.store(BUCKET), "listed")
    assert [meta["path"] for page in pages for meta in page] == ["listed/a", "listed/c"]


def test_it_refuses_a_wrong_secret_and_misses_what_is_not_there(s3_server: S3Server) -> None:
    s3_server.put(BUCKET, "guarded", b"x")
    with pytest.raises(obstore.exceptions.PermissionDeniedError):
        obstore.head(s3_server.store(BUCKET, secret_key="wrong"), "guarded")
    with pytest.raises(FileNotFoundError):
        obstore.head(s3_server.store(BUCKET), "absent")


def test_the_environment_is_enough_for_obstore_and_s3fs(s3_environment: S3Server) -> None:
    s3_environment.put(BUCKET, "by-environment", b"hello")
    store = obstore.store.from_url(f"s3://{BUCKET}")
    assert bytes(obstore.get(store, "by-environment").bytes()) == b"hello"
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    assert filesystem.cat_file(f"{BUCKET}/by-environment") == b"hello"

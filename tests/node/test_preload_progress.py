"""What preloads count with: shares, paths, rates, manifests; and how data sets' sources become options of stores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core import view
from shoal_core.errors import ConfigError
from shoal_node import origin_options, preload_progress
from shoal_node.manifest import Manifest
from shoal_node.preload_progress import Progress, Throttle


def a_view(**statuses: view.NodeStatus) -> view.View:
    nodes = [
        view.Node(name, (f"tcp:{name}:1",), 100 * place, status=status)
        for place, (name, status) in enumerate(statuses.items(), 1)
    ]
    return view.make(1, nodes)


def test_a_share_is_by_capacity_of_those_that_are_ready() -> None:
    known = a_view(a="ready", b="ready", c="draining")
    assert preload_progress.share(known, "a") == pytest.approx(1 / 3)
    assert preload_progress.share(known, "c") == preload_progress.share(known, "none") == 0
    assert preload_progress.share(a_view(a="gone"), "a") == 0


def test_addresses_do_not_place_blocks() -> None:
    known = a_view(a="ready", b="ready")
    moved = view.make(2, [view.Node(node.id, ("tcp:other:1",), node.capacity_bytes) for node in known.nodes])
    assert preload_progress.placement_of(known) == preload_progress.placement_of(moved)
    assert preload_progress.placement_of(known) != preload_progress.placement_of(a_view(a="ready", b="draining"))
    assert preload_progress.placement_of(known) != preload_progress.placement_of(view.make(2, known.nodes, 2))


@pytest.mark.parametrize(
    ("paths", "roots"),
    [
        ([], [""]),
        (["a", "b/"], ["a", "b"]),
        (["a/x", "a", "a-b", "a/y/z"], ["a", "a-b"]),
        (["a", "/"], [""]),
        (["a", "a", "a/"], ["a"]),
    ],
)
def test_no_object_is_under_two_roots(paths: list[str], roots: list[str]) -> None:
    assert preload_progress.roots(paths) == roots


@given(st.lists(st.tuples(st.integers(1, 5_000), st.floats(0, 3)), min_size=1, max_size=50))
def test_a_throttle_never_goes_faster(asked: list[tuple[int, float]]) -> None:
    throttle, now_s, passed = Throttle(1000.0), 0.0, 0
    for size, pause_s in asked:
        now_s += pause_s
        now_s += throttle.delay_s(size, now_s)
        passed += size
        assert passed - size <= 1000.0 * now_s + 1000.0 + 1e-6, "what was saved up is one second's worth at most"


def test_without_a_rate_nothing_waits() -> None:
    assert Throttle(None).delay_s(1 << 40, 5.0) == 0.0


def test_a_few_errors_are_kept_and_the_reason_goes_first() -> None:
    progress = Progress()
    for number in (1, 1, 2, 3, 4, 5, 6):
        progress.note(str(number))
    assert progress.errors == ["1", "2", "3", "4", "5"]
    progress.fail("too small")
    assert (progress.state, progress.errors) == ("failed", ["too small", "1", "2", "3", "4"])


ROWS = [("a", 1, "x"), ("b", 2, "y"), ("c", 2, "")]


def of(rows: list[tuple[str, int, str]]) -> Manifest:
    made = Manifest()
    for row in rows:
        made.add(*row)
    return made


def test_a_manifest_is_of_a_set_of_objects() -> None:
    whole = of(ROWS)
    assert (whole.objects, whole.bytes, len(whole.digest)) == (3, 5, 32)
    assert {of(list(order)).digest for order in itertools.permutations(ROWS)} == {whole.digest}
    others = [
        [],
        ROWS[:2],
        [*ROWS, ("d", 0, "")],
        [("a", 1, "z"), *ROWS[1:]],
        [("a", 2, "x"), *ROWS[1:]],
        [*ROWS, ROWS[0]],
    ]
    digests = {of(rows).digest for rows in others}
    assert len(digests) == len(others) and whole.digest not in digests
    assert of([("a b", 1, "c")]).digest != of([("a", 1, "b c")]).digest


KEY = '{"private_key": "k", "client_email": "e"}'


@pytest.mark.parametrize(
    ("url", "secret", "options"),
    [
        (
            "s3://b", {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": " s\n", "AWS_SESSION_TOKEN": "t", "X": "o"},
            {"access_key_id": "i", "secret_access_key": "s", "session_token": "t"},
        ),
        ("gs://b", {"GOOGLE_SERVICE_ACCOUNT_KEY": KEY}, {"google_service_account_key": KEY}),
        ("gs://b", {"GOOGLE_APPLICATION_CREDENTIALS": KEY}, {"google_service_account_key": KEY}),
        (
            "az://b", {"AZURE_STORAGE_ACCOUNT_NAME": "n", "AZURE_STORAGE_SAS_TOKEN": "s"},
            {"azure_storage_account_name": "n", "azure_storage_sas_token": "s"},
        ),
    ],
)  # fmt: skip
def test_a_secret_becomes_options(url: str, secret: Mapping[str, str], options: Mapping[str, str]) -> None:
    assert origin_options.with_secret(url, None, None, secret) == options


@pytest.mark.parametrize(
    ("url", "secret", "said"),
    [
        ("s3://b", {}, "no key AWS_ACCESS_KEY_ID"),
        ("s3://b", {"AWS_ACCESS_KEY_ID": "HIDE", "AWS_SECRET_ACCESS_KEY": ""}, "no key AWS_SECRET_ACCESS_KEY"),
        (
            "s3://b", {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": "file:///etc"},
            "AWS_ENDPOINT_URL: it is not an http",
        ),
        ("s3://b", {"AWS_PROFILE": "/etc/HIDE"}, "no key AWS_ACCESS_KEY_ID"),
        ("gs://b", {"GOOGLE_APPLICATION_CREDENTIALS": "/etc/HIDE"}, "is not the JSON key"),
        ("gs://b", {"GOOGLE_SERVICE_ACCOUNT_KEY": '"HIDE"'}, "is not the JSON key"),
        ("gs://b", {}, "no key GOOGLE_SERVICE_ACCOUNT_KEY"),
        ("az://b", {"AZURE_FEDERATED_TOKEN_FILE": "/HIDE"}, "none of the keys AZURE_STORAGE_ACCOUNT_NAME"),
        ("http://b", {"AWS_ACCESS_KEY_ID": "HIDE"}, "only s3, gs and az"),
    ],
)  # fmt: skip
def test_a_secret_that_will_not_do(url: str, secret: Mapping[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        origin_options.with_secret(url, None, None, secret)
    assert "HIDE" not in str(caught.value)


def test_where_a_store_is() -> None:
    place = origin_options.place
    assert place("s3://b", "http://e:9000", "r") == {"endpoint": "http://e:9000", "allow_http": "true", "region": "r"}
    assert place("gs://b", "https://e", "r") == {"google_base_url": "https://e"}
    assert place("az://b", None, None) == place("http://b", "http://e", "r") == {}
    secret = {
        "AWS_ACCESS_KEY_ID": "i",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "own",
        "AWS_ENDPOINT_URL": "http://own",
    }
    found = origin_options.with_secret("s3://b", "https://given", "given", secret)
    assert (found["endpoint"], found["region"], "allow_http" in found) == ("https://given", "given", False)
    found = origin_options.with_secret("s3://b", None, None, secret)
    assert (found["endpoint"], found["region"], found["allow_http"]) == ("http://own", "own", "true")


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/x", "gs://b", "az://c/x", "http://web.example/x", "https://10.0.0.1:80/x", "file:///mnt/data/x"],
)
def test_places_that_a_tenant_may_name(url: str) -> None:
    assert origin_options.refusal(url) == ""


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc", "file:///mnt/../etc", "file:///mntx", "memory://x", "local:///etc", "shoal://x",
        "http://169.254.169.254/latest", "http://169.254.169.254:80/x", "https://metadata.google.internal/x",
        "http://[fe80::1]/x", "http://[fd00:ec2::254]/x", "s3://user:password@bucket", "simplecache::s3://b",
    ],
)  # fmt: skip
def test_places_that_a_tenant_may_not_name(url: str) -> None:
    assert origin_options.refusal(url)
    assert origin_options.refusal_of_endpoint(url)


def test_an_endpoint_is_no_url() -> None:
    assert origin_options.refusal_of_endpoint("http://[") == "it is not a URL"

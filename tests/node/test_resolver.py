"""From URLs to objects: one question to the origin however many ask, trusted for a minute, kept through an outage."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shoal import errors
from shoal_core import limits, verbs
from shoal_core.verbs import dataset, hello, listing, resolve
from shoal_node import resolver
from shoal_transport.memory import MemoryChannel
from tests.support import waiting
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.running_node import InProcessNode, MakeInProcess


class Asking:
    """One connection that asks a node, past the client and what the client remembers."""

    def __init__(self, node: InProcessNode) -> None:
        self.channel: MemoryChannel = node.memory.connect()
        self.call(hello.KIND, hello.Request(bytes(16), hello.REQUESTS, "test"))

    def call(self, kind: int, request: Any) -> Any:
        header, body = self.channel.call(kind, verbs.encode(request), waiting.deadline())
        return verbs.decode_reply(kind, header, body)

    def resolve(self, *urls: str, deadline_ms: int = 10_000) -> list[Any]:
        return self.call(resolve.KIND, resolve.Request([resolve.Wanted(url) for url in urls], deadline_ms)).objects

    def list(self, url: str, cursor: int = 0) -> listing.Reply:
        return self.call(listing.KIND, listing.Request(url, cursor, 10_000))


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node()


@pytest.fixture
def asking(node: InProcessNode) -> Iterator[Asking]:
    connection = Asking(node)
    yield connection
    connection.channel.close()


def test_it_is_asked_once_a_minute(asking: Asking, http_origin: HttpOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    url = http_origin.put("/data", b"x" * 100)
    (first,) = asking.resolve(url)
    assert (first.url, first.origin, first.size, first.stale) == (url, url, 100, False)
    assert len(first.fingerprint) == 16 and first.block_size_bytes == 64 << 10
    assert asking.resolve(url, url) == [first, first]
    assert http_origin.count("/data", "HEAD") == 1
    http_origin.put("/data", b"y" * 70)
    assert asking.resolve(url) == [first]
    monkeypatch.setattr(limits, "RESOLVE_FRESH_S", 0.0)
    (changed,) = asking.resolve(url)
    assert changed.size == 70 and changed.fingerprint != first.fingerprint
    assert http_origin.count("/data", "HEAD") == 2


def test_of_all_who_ask_at_once_one_goes_to_the_origin(node: InProcessNode, http_origin: HttpOrigin) -> None:
    gate = threading.Event()
    url = http_origin.put("/data", b"x")
    http_origin.fail("/data", Fault(gate=gate, methods=("HEAD",)))
    askers = [Asking(node) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        replies = [pool.submit(asker.resolve, url) for asker in askers]
        impatient = askers[0].channel
        http_origin.await_requests("/data", 1, "HEAD")
        gate.set()
        found = {reply.result(10)[0].fingerprint for reply in replies}
    assert len(found) == 1 and not impatient.broken
    assert http_origin.count("/data", "HEAD") == 1
    for asker in askers:
        asker.channel.close()


def test_who_stops_waiting_strands_nobody(node: InProcessNode, asking: Asking, http_origin: HttpOrigin) -> None:
    gate = threading.Event()
    url = http_origin.put("/data", b"x")
    http_origin.fail("/data", Fault(gate=gate, methods=("HEAD",)))
    (failed,) = asking.resolve(url, deadline_ms=50)
    assert failed.code == errors.DeadlineExceeded.code and url in failed.text
    other = Asking(node)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(other.resolve, url)
        gate.set()
        assert patient.result(10)[0].size == 1
    assert http_origin.count("/data", "HEAD") == 1
    other.channel.close()


def test_each_url_has_its_own_outcome(asking: Asking, http_origin: HttpOrigin) -> None:
    good = http_origin.put("/good", b"x")
    http_origin.fail("/good", Fault(status=500, after=100, methods=("HEAD",)))
    forbidden = http_origin.put("/forbidden", b"x")
    http_origin.fail("/forbidden", Fault(status=403, methods=("HEAD",)))
    missing = http_origin.url("/missing")
    answers = asking.resolve(good, missing, forbidden, "gopher://host/x", "x" * 10_000, good)
    codes = [getattr(answer, "code", 0) for answer in answers]
    assert codes == [0, errors.NotFound.code, errors.Forbidden.code, errors.BadRequest.code, errors.BadRequest.code, 0]
    assert missing in answers[1].text and len(answers[4].text) < 500


def test_an_outage_is_outlived_by_what_was_known(
    node: InProcessNode, asking: Asking, http_origin: HttpOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, unknown = http_origin.put("/data", b"x"), http_origin.put("/unknown", b"y")
    (known,) = asking.resolve(url)
    for path in ("/data", "/unknown"):
        http_origin.fail(path, Fault(status=503, methods=("HEAD",)))
    monkeypatch.setattr(limits, "RESOLVE_FRESH_S", 0.0)
    stale, failed = asking.resolve(url, unknown)
    assert stale.fingerprint == known.fingerprint and stale.stale
    assert failed.code == errors.OriginError.code
    assert node.node.counters.fallbacks["stale_resolve"] == 1
    http_origin.heal("/data")
    assert asking.resolve(url) == [known]


def test_gone_is_not_an_outage(asking: Asking, http_origin: HttpOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    url = http_origin.put("/data", b"x")
    asking.resolve(url)
    http_origin.delete("/data")
    monkeypatch.setattr(limits, "RESOLVE_FRESH_S", 0.0)
    assert asking.resolve(url)[0].code == errors.NotFound.code


def test_a_claim_costs_no_question_and_names_exactly_what_it_says(asking: Asking, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/data", b"x" * 10)
    (found,) = asking.resolve(url)
    claims = [
        resolve.Wanted(url, size, etag)
        for size, etag in ((found.size, found.etag), (11, found.etag), (10, "other"), (-1, "x"), (1 << 62, "x"))
    ]
    same, longer, other, negative, huge = asking.call(resolve.KIND, resolve.Request(claims, 1000)).objects
    assert same.fingerprint == found.fingerprint
    assert len({found.fingerprint, longer.fingerprint, other.fingerprint}) == 3
    assert negative.code == huge.code == errors.BadRequest.code
    assert http_origin.count("/data", "HEAD") == 1
    assert asking.resolve(url) == [found], "a claim is not what the origin said"


def test_datasets_have_names_and_spaces_of_their_own(asking: Asking, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/folder/ä b/c", b"xyz")
    base = http_origin.url("/folder")
    for name, at in (("one", base), ("two", base + "/")):
        assert asking.call(dataset.KIND, dataset.Request(name, at, "s3fifo", None, None)).created is True
    assert asking.call(dataset.KIND, dataset.Request("one", base, "epoch", None, None)).created is False
    path = url.removeprefix(base)
    plain, one, two, none, no_path = asking.resolve(
        url, f"shoal://one{path}", f"shoal://two{path}", f"shoal://three{path}", "shoal://"
    )
    assert one.url == f"shoal://one{path}" and one.origin == two.origin == plain.origin
    assert len({plain.fingerprint, one.fingerprint, two.fingerprint}) == 3, "nothing is shared between spaces"
    assert none.code == no_path.code == errors.NotFound.code
    assert "one" in none.text and "two" in none.text, "it says what there is"


def test_listings_page_by_page(asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{folder}/{number:03}" for folder in ("a", "b") for number in range(70)]
    for name in names:
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(b"x" * int(name[2:]))
    asking.call(dataset.KIND, dataset.Request("files", f"file://{tmp_path}/files", "s3fifo", None, None))
    for base in (f"file://{tmp_path}/files", f"file://{tmp_path}/files/", "shoal://files", "shoal://files/"):
        found: dict[str, int] = {}
        cursor = 0
        while True:
            page = asking.list(base, cursor)
            found |= {entry.url: entry.size for entry in page.objects}
            cursor = page.cursor
            if not cursor:
                break
        assert found == {f"{base.rstrip('/')}/{name}": int(name[2:]) for name in names}
        url = f"{base.rstrip('/')}/a/007"
        before = asking.resolve(url)[0]
        assert before.size == 7 and not before.stale
    with pytest.raises(errors.BadRequest, match="not open any more"):
        asking.list("shoal://files", 10**6)
    with pytest.raises(errors.NotFound):
        asking.list(f"file://{tmp_path}/nothing-here")


def test_only_so_many_listings_stay_open(
    node: InProcessNode, asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").write_bytes(b"x")
    monkeypatch.setattr(resolver, "_LISTINGS_OPEN_MAX", 3)
    cursors = [asking.list(f"file://{tmp_path}").cursor for _ in range(5)]
    assert all(cursors) and len(node.server.resolver._listings) == 3
    with pytest.raises(errors.BadRequest, match="start again"):
        asking.list(f"file://{tmp_path}", cursors[0])
    assert asking.list(f"file://{tmp_path}", cursors[4]).cursor == 0

"""What a reader may ask: its own data sets and derived objects, whatever it learned elsewhere, and no other verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal_core import keys, verbs
from shoal_core.errors import Forbidden, NotFound, ShoalError, UnknownObject, from_wire
from shoal_core.verbs import (
    complain,
    dataset,
    drain,
    evict,
    fetch,
    get,
    holding,
    inspect,
    listing,
    map,
    offer,
    plan,
    release,
    resolve,
    stat,
    store,
    view,
)
from shoal_node import scope
from shoal_node.session import Session
from shoal_transport.memory import MemoryConnection, _Pipe
from tests.support.identities import Asker, token
from tests.support.running_node import InProcessNode
from tests.support.two_teams import IMAGES, SPEECH, A, B, data, node, operator, reader

__all__ = ["data", "node", "operator", "reader"]


def refused(found: Any) -> str:
    """The text of one item's error, which is Forbidden."""
    assert isinstance(found, resolve.Failed), found
    error = from_wire(found.code, found.text)
    assert type(error) is Forbidden, error
    return str(error)


def test_a_reader_reads_its_data_set_by_both_names(node: InProcessNode, reader: Asker, operator: Asker) -> None:
    own, known = reader.resolve("shoal://images/one", "shoal://team-a.images/one")
    assert (own.url, known.url) == ("shoal://images/one", "shoal://team-a.images/one")
    assert own.fingerprint == known.fingerprint and reader.read(own) == A
    (other,) = operator.resolve("shoal://team-a.images/one")
    assert other.fingerprint == own.fingerprint, "and it is the same object for everybody"
    listed = reader.call(listing.KIND, listing.Request("shoal://images/", 0, 10_000)).objects
    assert [entry.url for entry in listed] == ["shoal://images/one"]
    assert not reader.terms.grants and operator.terms.grants


def test_names_and_urls_that_are_not_its_own(reader: Asker, data: Path) -> None:
    says = "not for team-a/pod, which may read shoal://images/..."
    urls = [
        "shoal://team-b.speech/one",
        "shoal://speech/one",
        "shoal://no-such/one",
        f"file://{data}/team-a/images/one",
    ]
    for url, found in zip(urls, reader.resolve(*urls), strict=True):
        assert refused(found).startswith(url) and refused(found).endswith(says)
    (mixed, good) = reader.resolve("s3://bucket/key", "shoal://images/one")
    assert "s3://bucket/key: read by its URL at the origin: not for" in refused(mixed) and good.size == len(A)
    with pytest.raises(Forbidden, match="which may read shoal://images/"):
        reader.call(listing.KIND, listing.Request("shoal://team-b.speech", 0, 10_000))
    with pytest.raises(Forbidden, match="which may read shoal://images/"):
        reader.call(listing.KIND, listing.Request(f"file://{data}", 0, 10_000))


@pytest.mark.parametrize(
    "path",
    [
        "../../team-b/speech/one",
        "x/../../../team-b/speech/one",
        "%2e%2e/one",
        "x/.%2E/one",
        "..%2fone",
        "..\\..\\one",
        "x/.\t./one",
        "x/.\n./../one",
        "..",
    ],
)
def test_no_path_leads_out_of_a_data_set(reader: Asker, path: str) -> None:
    (found,) = reader.resolve(f"shoal://images/{path}")
    assert "could lead out of the data set" in refused(found)
    with pytest.raises(Forbidden, match="could lead out"):
        reader.call(listing.KIND, listing.Request(f"shoal://images/{path}", 0, 10_000))


def test_dots_that_go_nowhere_are_names(reader: Asker, data: Path) -> None:
    for name in ("..one", "one..", "...", "a..b"):
        (data / "team-a" / "images" / name).write_bytes(A)
        (found,) = reader.resolve(f"shoal://images/{name}")
        assert isinstance(found, resolve.Object) and found.size == len(A)


def test_a_chain_of_file_systems_is_no_path() -> None:
    restricted = scope.Scope("a/pod", "a", {"d": "a.d"})
    assert restricted.translated("shoal://d/x::file:///etc/passwd") == "shoal://a.d/x::file:///etc/passwd"


def test_a_chained_path_is_refused_where_it_would_be_followed(node: InProcessNode, operator: Asker, data: Path) -> None:
    operator.call(dataset.KIND, dataset.Request("team-a.memory", "memory://place", "s3fifo", None, None))
    with Asker(node.tcp_address, token(datasets={"memory": "team-a.memory"} | IMAGES)) as asker:
        chained, verbatim = asker.resolve("shoal://memory/x::file:///etc/passwd", "shoal://images/x::y")
    assert "'::' would name another place" in refused(chained)
    assert from_wire(verbatim.code, verbatim.text).__class__ is NotFound


def test_a_fingerprint_is_no_permission(node: InProcessNode, reader: Asker, operator: Asker) -> None:
    (speech,) = operator.resolve("shoal://team-b.speech/one")
    assert operator.read(speech, inline=True) == B
    item = get.Item(0, 0, 0, 4)
    says = "an object of another data set or namespace: not for team-a/pod"
    stream = plan.Request(bytes(16), 0, [speech.fingerprint], [plan.Use(0, 0, 1, 0)], 1, 1)
    for kind, request in (
        (get.KIND, get.Request([speech.fingerprint], [item], [], 10_000, True)),
        (get.KIND, get.Request([speech.fingerprint], [], [get.Ahead(0, 0, 1)], 10_000, True)),
        (inspect.KIND, inspect.Request([speech.fingerprint])),
        (plan.KIND, stream),
    ):
        with pytest.raises(Forbidden, match=says):
            reader.call(kind, request)
    (own,) = reader.resolve("shoal://images/one")
    with pytest.raises(Forbidden, match=says):  # also beside one that it may read
        reader.call(get.KIND, get.Request([own.fingerprint, speech.fingerprint], [item], [], 10_000, True))
    assert node.node.counters.refusals["scope"] == 5


def test_nor_is_a_claim(node: InProcessNode, reader: Asker, operator: Asker, data: Path) -> None:
    (speech,) = operator.resolve("shoal://team-b.speech/one")
    with node.node.step() as state:
        state.objects.__init__()  # as after a restart
    item, url = get.Item(0, 0, 0, 4), f"file://{data}/team-b/speech/one"
    for claim in (
        resolve.Wanted("shoal://team-b.speech/one", speech.size, speech.etag),
        resolve.Wanted(url, speech.size, speech.etag),
        resolve.Wanted(url, speech.size, speech.etag, "team-b.speech"),
        resolve.Wanted(url, speech.size, speech.etag, "team-a.images"),
    ):
        with pytest.raises(Forbidden):
            reader.call(get.KIND, get.Request([speech.fingerprint], [item], [], 10_000, True, claims=[claim]))
    (named,) = reader.call(resolve.KIND, resolve.Request([claim], 1000)).objects
    assert "its space was named" in refused(named)
    own = resolve.Wanted("shoal://images/one", speech.size, speech.etag)
    with pytest.raises(UnknownObject):
        reader.call(get.KIND, get.Request([speech.fingerprint], [item], [], 10_000, True, claims=[own]))
    assert reader.call(inspect.KIND, inspect.Request([speech.fingerprint])).objects == [None]


def test_a_block_of_others_is_neither_complained_of_nor_touched(
    node: InProcessNode, reader: Asker, operator: Asker
) -> None:
    (speech,) = operator.resolve("shoal://team-b.speech/one")
    operator.read(speech, inline=True)
    with node.node.step() as state:
        entry = state.index.find(keys.block_key(speech.fingerprint, 0))
        generation = state.index.generation[entry]
    for number in (entry, -1, 1 << 30):
        with pytest.raises(Forbidden, match="a block of another data set"):
            reader.call(complain.KIND, complain.Request(number, generation))
    before = node.node.counters.granted_hits
    reader.call(release.KIND, release.Request([(entry, 1)], [(entry, generation, 3)]))
    assert node.node.counters.granted_hits == before
    (own,) = reader.resolve("shoal://images/one")
    reader.read(own)
    with node.node.step() as state:
        entry = state.index.find(keys.block_key(own.fingerprint, 0))
        generation = state.index.generation[entry]
    assert reader.call(complain.KIND, complain.Request(entry, generation)).quarantined is False
    reader.call(release.KIND, release.Request([], [(entry, generation, 3)]))
    assert node.node.counters.granted_hits == before + 3


@pytest.mark.parametrize(
    "request_",
    [
        fetch.Request([bytes(16)], 1000),
        offer.Request("node-9", 1, "drain", []),
        drain.Request(drain.START),
        dataset.Request("team-a.images", "s3://other", "s3fifo", None, None),
        holding.Request([bytes(16)]),
    ],
)
def test_verbs_that_are_not_for_readers(node: InProcessNode, reader: Asker, request_: Any) -> None:
    kind = next(kind for kind, verb in verbs.VERBS.items() if isinstance(request_, verb.Request))
    with pytest.raises(Forbidden, match=rf"the verb {verbs.name(kind)}: not for team-a/pod, which may read"):
        reader.call(kind, request_)
    assert not node.node.draining and reader.resolve("shoal://images/one")[0].size == len(A), "and it is still served"


def test_a_new_verb_is_not_a_readers_until_somebody_says_so(node: InProcessNode) -> None:
    restricted = Session(node.server, MemoryConnection(_Pipe(), _Pipe(), None), scope.Scope("a/pod", "a", IMAGES))
    assert sorted(verbs.name(kind) for kind in restricted._verbs) == [
        "complain", "evict", "get", "hello", "inspect", "listing", "map", "plan", "release", "resolve", "stat", "store",
        "view",
    ]  # fmt: skip


def test_derived_objects_of_namespaces_never_meet(node: InProcessNode, reader: Asker, operator: Asker) -> None:
    with Asker(node.tcp_address, token(namespace="team-b", datasets=SPEECH)) as other:
        mine, theirs = reader.claim("derived:index", 4), other.claim("derived:index", 4)
        everybody = operator.claim("derived:index", 4)
        assert len({found.fingerprint for found in (mine, theirs, everybody)}) == 3
        assert mine.url == "derived:index"
        for asker, found, content in ((reader, mine, b"mine"), (other, theirs, b"ours")):
            assert asker.call(store.KIND, store.Request(found.fingerprint, 0, content, 10_000)).stored
        assert (reader.read(mine), other.read(theirs)) == (b"mine", b"ours")
        for kind, request in (
            (store.KIND, store.Request(everybody.fingerprint, 0, b"evil", 10_000)),
            (store.KIND, store.Request(theirs.fingerprint, 0, b"evil", 10_000)),
            (get.KIND, get.Request([theirs.fingerprint], [get.Item(0, 0, 0, 4)], [], 10_000, True)),
            (evict.KIND, evict.Request([theirs.fingerprint])),
        ):
            with pytest.raises(Forbidden):
                reader.call(kind, request)
        assert reader.claim("derived:(team-b)index", 4).fingerprint != theirs.fingerprint
        assert other.read(theirs) == b"ours"
    assert reader.call(evict.KIND, evict.Request([mine.fingerprint])).blocks == 1
    with pytest.raises(UnknownObject):
        reader.call(store.KIND, store.Request(bytes(16), 0, b"evil", 10_000))


def test_what_a_reader_may_not_drop_or_store(reader: Asker) -> None:
    (own,) = reader.resolve("shoal://images/one")
    reader.read(own)
    with pytest.raises(Forbidden, match="the verb evict, but for derived objects of its own namespace: not for"):
        reader.call(evict.KIND, evict.Request([own.fingerprint]))
    with pytest.raises(Forbidden, match="the verb store, but for derived"):
        reader.call(store.KIND, store.Request(own.fingerprint, 0, bytes(own.size), 10_000))
    assert reader.call(evict.KIND, evict.Request([bytes(16)])).blocks == 0
    assert reader.read(own) == A


def test_the_status_names_nobody_else(reader: Asker, operator: Asker) -> None:
    (speech,) = operator.resolve("shoal://team-b.speech/one")
    operator.read(speech, inline=True)
    values = reader.call(stat.KIND, stat.Request()).values
    assert values["node"] == "node-1" and values["config"] == {"nvme": []} and list(values["spaces"]) == ["images"]
    text = repr(values)
    assert not any(word in text for word in ("speech", "team-b", "team-a", "processes", "key_file"))
    assert values["tiers"]["dram"]["used_bytes"] > 0
    asked = reader.call(view.KIND, view.Request(0, datasets=True))
    assert asked.datasets == []


def test_listings_are_not_gone_on_with_by_others(
    node: InProcessNode, reader: Asker, operator: Asker, data: Path
) -> None:
    with Asker(node.tcp_address, token(namespace="team-b", datasets=SPEECH)) as other:
        page = other.call(listing.KIND, listing.Request("shoal://speech", 0, 10_000))
        assert page.cursor
        with pytest.raises(Forbidden, match="an object of another data set"):
            reader.call(listing.KIND, listing.Request("shoal://images", page.cursor, 10_000))
        assert other.call(listing.KIND, listing.Request("shoal://speech", page.cursor, 10_000)).cursor == 0


def test_a_data_set_that_the_node_does_not_know_yet(node: InProcessNode, operator: Asker, data: Path) -> None:
    with Asker(node.tcp_address, token(datasets={"new": "team-a.new"})) as asker:
        (missing,) = asker.resolve("shoal://new/one")
        error = from_wire(missing.code, missing.text)
        assert type(error) is NotFound and "does not know the data set 'team-a.new', or not yet" in str(error)
        operator.call(dataset.KIND, dataset.Request("team-a.new", f"file://{data}/team-a/images", "s3fifo", None, None))
        assert asker.resolve("shoal://new/one")[0].size == len(A)


def test_the_space_of_bare_urls_is_nobodys_data_set(node: InProcessNode, operator: Asker, data: Path) -> None:
    (bare,) = operator.resolve(f"file://{data}/team-b/speech/one")
    with Asker(node.tcp_address, token(datasets={"all": "default"})) as asker:
        with pytest.raises(Forbidden, match="which may read no data set"):
            asker.call(get.KIND, get.Request([bare.fingerprint], [get.Item(0, 0, 0, 4)], [], 1000, True))
        assert "no data set" in refused(asker.resolve("shoal://all/one")[0])


def test_a_segment_is_not_mapped_through_tcp(reader: Asker) -> None:
    with pytest.raises(ShoalError, match="the tcp door passes no descriptors"):
        reader.call(map.KIND, map.Request(0))

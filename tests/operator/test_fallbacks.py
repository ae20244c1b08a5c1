"""Fallbacks: events and what keeps a pool Degraded."""

from shoal_operator import fallbacks
from shoal_operator.model import Seen
from tests.operator import worlds
from tests.operator.worlds import NOW_S, report, up

OLD, YOUNG = worlds.pods(up("n1")), worlds.pods(up("n1", created_s=NOW_S - 10))
BYPASS = fallbacks.PASSING["bypass"]


def texts(events: list[fallbacks.Event]) -> list[str]:
    assert all((event.type, event.reason) == ("Warning", "Fallback") for event in events)
    return [event.message for event in events]


def test_what_rises_is_told_once():
    seen, events = fallbacks.watch([report("n1", fallbacks={"bypass": 3, "odd": 0})], OLD, {})
    assert events == [] and seen == {("n1", "bypass"): Seen(3), ("n1", "odd"): Seen(0)}
    seen, events = fallbacks.watch([report("n1", NOW_S + 5, fallbacks={"bypass": 5, "odd": 1})], OLD, seen)
    unknown = "a fallback that this operator does not know"
    assert texts(events) == [f"n1: bypass +2 ({BYPASS})", f"n1: odd +1 ({unknown})"]
    assert seen["n1", "bypass"] == Seen(5, NOW_S + 5)
    seen, events = fallbacks.watch([report("n1", NOW_S + 10, fallbacks={"bypass": 5})], OLD, seen)
    assert events == [] and seen == {("n1", "bypass"): Seen(5, NOW_S + 5)}
    # A process that was restarted counts anew.
    seen, events = fallbacks.watch([report("n1", NOW_S + 15, fallbacks={"bypass": 1})], OLD, seen)
    assert texts(events) == [f"n1: bypass +1 ({BYPASS})"]


def test_what_a_young_pod_says_first_is_news():
    _, events = fallbacks.watch([report("n1", fallbacks={"huge_pages": 1, "bypass": 0})], YOUNG, {})
    assert len(events) == 1 and events[0].message.startswith("n1: huge_pages +1 (memory in small pages")
    assert fallbacks.watch([report("n1", fallbacks={"huge_pages": 1})], {}, {})[1] == []


def test_many_are_cut_short():
    many = [report(f"n{number}", fallbacks={"bypass": 1}) for number in range(1, 10)]
    pods = worlds.pods(*(up(one.node, created_s=NOW_S) for one in many))
    _, events = fallbacks.watch(many, pods, {})
    assert len(events) == 8 and events[-1].message == "and 2 more counters of fallbacks rose"
    assert len(fallbacks.watch(many[:8], pods, {})[1]) == 8


def test_what_stands_or_rose_lately_is_complained_of():
    memory = {
        ("n1", "huge_pages"): Seen(1),
        ("n2", "huge_pages"): Seen(0),
        ("n1", "bypass"): Seen(9),
        ("n2", "bypass"): Seen(9, NOW_S - 599),
        ("n3", "lease_limit"): Seen(9, NOW_S - 600),
    }
    said = fallbacks.complaints(memory, NOW_S)
    assert [text.partition(" (")[0] for text in said] == ["bypass on n2", "huge_pages on n1"]
    assert fallbacks.complaints({}, NOW_S) == []
    assert fallbacks.listed(list("abcdef")) == "a, b, c, d and 2 more"

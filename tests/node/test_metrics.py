"""Counters as they are shown: every family by its name, nothing lost between `Counters` and the text."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal_core.verbs import get
from shoal_node import metrics


def shown(counters: metrics.Counters, gauges: metrics.Gauges) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus would store, by its own parser."""
    text = metrics.render(counters, gauges).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def gauges() -> metrics.Gauges:
    return metrics.Gauges(
        tiers={
            "dram": metrics.TierGauges(budget_bytes=1 << 30, used_bytes=700, blocks=3, index_bytes=384),
            "disk": metrics.TierGauges(budget_bytes=1 << 40, used_bytes=900, blocks=5),
        },
        spaces={"digits": metrics.SpaceGauges(used_bytes=40, quota_bytes=50), "urls": metrics.SpaceGauges(7)},
        clients=2,
        leases=4,
        leased_bytes=99,
        fills_in_flight=1,
        disk_queue=6,
    )


def test_every_counter_reaches_prometheus_under_its_labels(gauges: metrics.Gauges) -> None:
    counters = metrics.Counters()
    counters.reads["tcp"][get.SOURCE_DISK] += 3
    counters.read_bytes["tcp"][get.SOURCE_DISK] += 4096
    counters.granted_hits += 12
    counters.fills["s3", "ok"] += 2
    counters.fills["s3", "Forbidden"] += 1
    counters.fill_bytes += 8192
    counters.origin_requests += 5
    counters.evictions["disk"] += 7
    counters.revokes["busy"] += 8
    counters.fallbacks["o_direct"] += 9
    counters.corrupt_pages["origin"] += 10
    counters.disk_errors["write"] += 11
    values = shown(counters, gauges)

    def value(name: str, **labels: str) -> float:
        return values[name, frozenset(labels.items())]

    assert value("shoal_reads_total", door="tcp", source="disk") == 3
    assert value("shoal_reads_total", door="tcp", source="dram") == 0
    assert value("shoal_read_bytes_total", door="tcp", source="disk") == 4096
    assert value("shoal_granted_hits_total") == 12
    assert value("shoal_fills_total", origin="s3", result="ok") == 2
    assert value("shoal_fills_total", origin="s3", result="Forbidden") == 1
    assert value("shoal_fill_bytes_total") == 8192
    assert value("shoal_origin_requests_total") == 5
    assert value("shoal_evictions_total", tier="disk") == 7
    assert value("shoal_revokes_total", answer="busy") == 8
    assert value("shoal_fallbacks_total", kind="o_direct") == 9
    assert value("shoal_corrupt_pages_total", where="origin") == 10
    assert value("shoal_disk_errors_total", op="write") == 11


def test_every_gauge_reaches_prometheus(gauges: metrics.Gauges) -> None:
    values = shown(metrics.Counters(), gauges)

    def value(name: str, **labels: str) -> float | None:
        return values.get((name, frozenset(labels.items())))

    assert value("shoal_tier_bytes", tier="dram", kind="used") == 700
    assert value("shoal_tier_bytes", tier="dram", kind="index") == 384
    assert value("shoal_tier_bytes", tier="disk", kind="budget") == 1 << 40
    assert value("shoal_blocks", tier="disk") == 5
    assert value("shoal_space_bytes", space="digits", kind="quota") == 50
    assert value("shoal_space_bytes", space="urls", kind="used") == 7
    assert value("shoal_space_bytes", space="urls", kind="quota") is None
    named = {"clients": 2, "leases": 4, "leased_bytes": 99, "fills_in_flight": 1, "disk_queue": 6}
    assert {name: value(f"shoal_{name}") for name in named} == named


def test_a_rate_exists_before_the_first_event(gauges: metrics.Gauges) -> None:
    """An alert on an increase must not miss the first one because the series did not exist before."""
    values = shown(metrics.Counters(), gauges)
    for family in metrics.FAMILIES:
        for preset in family.preset:
            labels = dict(zip(family.labels, (preset,) if isinstance(preset, str) else preset, strict=True))
            assert values[f"{family.name}_total", frozenset(labels.items())] == 0


def test_label_values_not_in_the_table_are_counted_too(gauges: metrics.Gauges) -> None:
    counters = metrics.Counters()
    counters.fallbacks["something new"] += 1
    reads, read_bytes = counters.door("memory")
    reads[get.SOURCE_DRAM] += 1
    read_bytes[get.SOURCE_DRAM] += 5
    values = shown(counters, gauges)
    assert values["shoal_fallbacks_total", frozenset({("kind", "something new")})] == 1
    assert values["shoal_read_bytes_total", frozenset({("door", "memory"), ("source", "dram")})] == 5


def test_names_from_users_cannot_break_the_text(gauges: metrics.Gauges) -> None:
    name = 'a"b\\c\nshoal_clients 9 ü'
    gauges.spaces[name] = metrics.SpaceGauges(3)
    values = shown(metrics.Counters(), gauges)
    assert values["shoal_space_bytes", frozenset({("space", name), ("kind", "used")})] == 3
    assert values["shoal_clients", frozenset()] == 2


def test_the_snapshot_holds_the_same_numbers_as_the_text(gauges: metrics.Gauges) -> None:
    counters = metrics.Counters()
    counters.reads["shared_memory"][get.SOURCE_DRAM] += 3
    counters.fills["file", "ok"] += 2
    counters.granted_hits += 1
    values = metrics.snapshot(counters, gauges)
    assert values["reads"]["shared_memory"] == {"dram": 3, "disk": 0, "origin": 0, "peer": 0}
    assert values["fills"] == {"file": {"ok": 2}}
    assert values["granted_hits"] == 1
    assert values["tiers"]["dram"] == {"budget_bytes": 1 << 30, "used_bytes": 700, "blocks": 3, "index_bytes": 384}
    assert values["spaces"]["digits"] == {"used_bytes": 40, "quota_bytes": 50}
    assert values["clients"] == 2
    assert set(values) >= {family.attribute for family in metrics.FAMILIES}


def test_counters_take_no_misspelt_name() -> None:
    with pytest.raises(AttributeError):
        metrics.Counters().fill_byte = 1  # pyright: ignore[reportAttributeAccessIssue]

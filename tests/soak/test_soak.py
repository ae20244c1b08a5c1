"""A minute of the soak in every run of the tests; `make soak` takes ten."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path

import pytest

from tests.soak import __main__ as shown
from tests.soak import soak
from tests.soak.growth import Growth, Sample, thirds
from tests.soak.latencies import Latencies

_SECONDS = float(os.environ.get("SOAK_S") or 60)


@pytest.mark.slow
@pytest.mark.timeout(2 * _SECONDS + 240)
def test_a_minute_under_64_readers() -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes longer than any other test, as it should
    with soak.directory() as place:
        result = soak.run(_SECONDS, place)
    shown.show(result)
    assert result.problems == []


def test_growth_is_noticed(tmp_path: Path) -> None:
    growth = Growth({"flat": 1, "memory": 1, "descriptors": 1})
    growth.samples["flat"] = [Sample(100 << 20, 50)] * 60
    growth.samples["memory"] = [Sample((100 + 2 * number) << 20, 50) for number in range(60)]
    growth.samples["descriptors"] = [Sample(100 << 20, 50 + number) for number in range(60)]
    assert [problem.partition(" grew")[0] for problem in growth.problems()] == [
        "memory: memory", "descriptors: descriptors",
    ]  # fmt: skip
    assert thirds([1, 1, 1, 1, 1, 1, 4, 5, 6, 7, 8, 9]) == (4.5, 8.5)


def test_percentiles_are_right_within_a_bucket() -> None:
    latencies = Latencies()
    for number in range(1, 1001):
        latencies.add(number / 1000)
    for percent, seconds in ((50, 0.5), (99, 0.99), (99.9, 0.999)):
        assert seconds <= latencies.percentile(percent) * 1.001 <= seconds * 1.06
    assert Latencies().percentile(50) == 0

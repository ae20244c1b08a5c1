"""Schedules: which minutes they name, next and last."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import ConfigError
from shoal_operator import cron


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("schedule", "after", "then"),
    [
        ("* * * * *", "2025-11-24 16:00:59", "2025-11-24 16:01"),
        ("*/15 * * * *", "2025-11-24 16:00", "2025-11-24 16:15"),
        ("5/20 * * * *", "2025-11-24 16:26", "2025-11-24 16:45"),
        ("30 2 * * *", "2025-11-24 16:00", "2025-11-25 02:30"),
        ("0 22-23 * * *", "2025-11-24 22:00", "2025-11-24 23:00"),
        ("0 0 1 * *", "2025-12-31 23:59", "2026-01-01 00:00"),
        ("0 0 29 2 *", "2025-11-24 16:00", "2028-02-29 00:00"),
        ("0 0 29 2 *", "2096-02-29 00:00", "2104-02-29 00:00"),
        ("0 0 */7 3 */7", "2026-03-30 00:00", "2037-03-01 00:00"),
        ("0 9 * * MON-fri", "2025-11-28 09:00", "2025-12-01 09:00"),
        ("0 9 * * 7", "2025-11-24 16:00", "2025-11-30 09:00"),
        ("0 9 1 * sun", "2025-11-24 16:00", "2025-11-30 09:00"),
        ("0 9 26 * sun", "2025-11-24 16:00", "2025-11-26 09:00"),
        ("0 9 */2 * sun", "2025-11-24 16:00", "2025-12-07 09:00"),
        ("0 0 1 jan,jul *", "2025-11-24 16:00", "2026-01-01 00:00"),
        ("@weekly", "2025-11-24 16:00", "2025-11-30 00:00"),
        ("@Hourly", "2025-11-24 16:00", "2025-11-24 17:00"),
        ("10,20-22,50/5 8 * * *", "2025-11-24 08:22", "2025-11-24 08:50"),
    ],
)  # fmt: skip
def test_what_follows(schedule: str, after: str, then: str):
    parsed = cron.parse(schedule)
    assert cron.following(parsed, at(after)) == at(then)
    assert cron.latest(parsed, at(after), at(then)) == at(then)
    assert cron.latest(parsed, at(then), at(then) + 59) is None


def test_what_never_comes():
    never = cron.parse("0 0 30 2 *")
    assert cron.following(never, at("2025-11-24 16:00")) is None
    assert cron.latest(never, at("2020-01-01 00:00"), at("2025-11-24 16:00")) is None


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("* * * *", "has 4 fields, not five"), ("@often", "has 1 fields, not five"),
        ("60 * * * *", "minute: '60' is not within 0-59"),
        ("* 24 * * *", "hour: '24'"), ("* * 0 * *", "day of month: '0' is not within 1-31"),
        ("* * * 13 *", "month: '13'"),
        ("* * * * 8", "day of week: '8'"), ("*/0 * * * *", "minute: '\\*/0'"), ("5-1 * * * *", "minute: '5-1'"),
        ("x * * * *", "minute: 'x' is not understood"), ("1- * * * *", "minute: '1-' is not"),
        ("1/ * * * *", "minute: '1/'"),
        ("-1 * * * *", "minute: '-1' is not"), ("1,,2 * * * *", "minute: '' is not"), ("* * * foo *", "month: 'foo'"),
        ("٣ * * * *", "minute: '٣' is not"),
    ],
)  # fmt: skip
def test_what_is_no_schedule(schedule: str, said: str):
    with pytest.raises(ConfigError, match=said):
        cron.parse(schedule)


FIELD = st.sampled_from(["*", "*/7", "3", "1-4", "2,5"])


@given(st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD), st.integers(1_700_000_000, 1_900_000_000))
def test_next_and_last_agree_with_looking_at_every_minute(fields: tuple[str, ...], start: int):
    schedule = cron.parse(" ".join(fields))
    found = cron.following(schedule, start)
    assert found is not None and found > start
    moment = datetime.fromtimestamp(found, UTC)
    assert schedule.has_day(moment) and moment.hour in schedule.hours and moment.minute in schedule.minutes
    assert cron.latest(schedule, start, found) == found
    assert cron.latest(schedule, start, found - 1) is None
    near = datetime.fromtimestamp(start // 60 * 60, UTC)
    for minutes in range(1, 200):
        one = near + timedelta(minutes=minutes)
        is_named = schedule.has_day(one) and one.hour in schedule.hours and one.minute in schedule.minutes
        assert not is_named or one.timestamp() >= found

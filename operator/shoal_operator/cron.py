"""Five fields as cron has them, in UTC: minute, hour, day of month, month, day of week.

Each field is `*`, a number, a range `a-b`, a list `a,b`, and a step `/n` behind `*`, a range, or a number (from there
to the end). Months and days have their English three-letter names too; Sunday is 0 and 7. Where both day fields are
restricted (neither begins with `*`), a day that fits either counts, as in every cron. @hourly, @daily (@midnight),
@weekly, @monthly and @yearly (@annually) are short for what their names say.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from shoal_core.errors import ConfigError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_SHORT = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
_DAYS_LOOKED_AT = 41 * 366
"""A 29th of February that is a certain weekday comes after 28 years, and after 40 where a year like 2100 lies between;
what is not found within them never comes."""


class Schedule(msgspec.Struct, frozen=True):
    """The values that each field allows."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    """Both day fields are restricted."""

    def has_day(self, moment: datetime) -> bool:
        by_date = moment.day in self.days
        by_weekday = moment.isoweekday() % 7 in self.weekdays
        return moment.month in self.months and (by_date or by_weekday if self.either_day else by_date and by_weekday)


@lru_cache(maxsize=256)
def parse(text: str) -> Schedule:
    """ConfigError says which part is wrong and what is allowed."""
    parts = _SHORT.get(text.strip().lower(), text).split()
    if len(parts) != len(_FIELDS):
        raise ConfigError(f"{text!r} has {len(parts)} fields, not five: minute, hour, day of month, month, day of week")
    minutes, hours, days, months, weekdays = (
        _field(part.lower(), *field) for part, field in zip(parts, _FIELDS, strict=True)
    )
    either = not parts[2].startswith("*") and not parts[4].startswith("*")
    return Schedule(minutes, hours, days, months, frozenset(day % 7 for day in weekdays), either)


def following(schedule: Schedule, after_s: float) -> float | None:
    """The first time after that moment; None: never."""
    moment = datetime.fromtimestamp(int(after_s) // 60 * 60 + 60, UTC)
    for _ in range(_DAYS_LOOKED_AT):
        if moment.month not in schedule.months:
            moment = (moment.replace(day=28, hour=0, minute=0) + timedelta(days=4)).replace(day=1)
            continue
        if schedule.has_day(moment):
            for hour in sorted(hour for hour in schedule.hours if hour >= moment.hour):
                first = moment.minute if hour == moment.hour else 0
                minutes = [minute for minute in schedule.minutes if minute >= first]
                if minutes:
                    return moment.replace(hour=hour, minute=min(minutes)).timestamp()
        moment = moment.replace(hour=0, minute=0) + timedelta(days=1)
    return None


def latest(schedule: Schedule, after_s: float, until_s: float) -> float | None:
    """The last time after one moment and not after the other; None: none."""
    moment = datetime.fromtimestamp(int(until_s) // 60 * 60, UTC)
    while moment.timestamp() > after_s:
        if schedule.has_day(moment):
            for hour in sorted((hour for hour in schedule.hours if hour <= moment.hour), reverse=True):
                last = moment.minute if hour == moment.hour else 59
                minutes = [minute for minute in schedule.minutes if minute <= last]
                if minutes:
                    found = moment.replace(hour=hour, minute=max(minutes)).timestamp()
                    return found if found > after_s else None
        moment = moment.replace(hour=23, minute=59) - timedelta(days=1)
    return None


def _field(text: str, name: str, low: int, high: int, words: dict[str, int]) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        first_text, dash, last_text = span.partition("-")
        try:
            step = int(step_text) if slash else 1
            if span == "*":
                first, last = low, high
            else:
                first = _number(first_text, words)
                last = _number(last_text, words) if dash else (high if slash else first)
        except ValueError:
            raise ConfigError(f"{name}: {part!r} is not understood") from None
        if not low <= first <= last <= high or step < 1:
            raise ConfigError(f"{name}: {part!r} is not within {low}-{high}")
        values.update(range(first, last + 1, step))
    return frozenset(values)


def _number(text: str, words: dict[str, int]) -> int:
    if text in words:
        return words[text]
    if not text.isascii() or not text.isdecimal():
        raise ValueError(text)
    return int(text)

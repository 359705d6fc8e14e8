"""When the ticks of a schedule are due."""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

from stages.base import StageError
from stages.hints import closest

_FIELDS = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day of month": "1-31, L (the last day) or LW (the last working day)",
    "month": "1-12 or JAN-DEC",
    "day of week": "0-7 (0 and 7 are Sunday) or SUN-SAT, MON#2 (the second Monday) or 5L (the last Friday)",
}
_ANY_YEAR = datetime(2000, 1, 1)
"""A leap year; from here CronSim looks 50 years ahead, in which every date falls on every day of the week."""
_SECOND, _MINUTE, _WEEK = timedelta(seconds=1), timedelta(minutes=1), timedelta(weeks=1)


@dataclass(frozen=True)
class Times:
    """The due times of a cron expression on the clocks of a time zone.

    Five fields are those of a crontab: minute, hour, day of month, month, day of week. Of six, the **first** is the
    second. As in a crontab, a tick needs both day fields to match if one of them begins with ``*``, else either.

    When the clocks change:

    * If the hour field names some hours, every clock time comes once a day. What falls into the missing hour comes
      together, as one tick, when the gap is over; of an hour that exists twice, only the first has ticks.
    * If it takes every hour (``*``), ticks go by real time: each moment at which the clock shows a matching time. So
      ``*/15 * * * *`` comes every 15 minutes throughout and ``0 * * * *`` every 60. Where clocks change by half an
      hour (Australia/Lord_Howe), minutes that are not 30 apart (``0 * * * *``) come half an hour earlier or later.
    """

    cron: str
    timezone: str

    @classmethod
    def parse(cls, cron: str, timezone: str) -> Times:
        """
        Raises:
            StageError: one of them is wrong; the message says what is wrong with both, a line each.
        """
        cron = " ".join(cron.split())
        wrong = [*_wrong_cron(cron), *_wrong_zone(timezone)]
        if wrong:
            raise StageError("\n".join(wrong))
        return cls(cron, timezone)

    @property
    def seconds(self) -> bool:
        """Whether it has a field of seconds."""
        return len(self.cron.split()) == 6

    def after(self, instant: datetime) -> datetime:
        """The first due time after an aware ``instant``, in UTC."""
        if len(CronSim(self._six, _ANY_YEAR).hours) == 24:
            return self._real(instant.astimezone(UTC))
        return self._once(instant.astimezone(UTC))

    def until(self, instant: datetime) -> datetime:
        """The latest due time that is not after an aware ``instant``, in UTC.

        It is found by halving: the search forward is exact at every change of the clocks, CronSim's backward is not.
        """
        instant, back = instant.astimezone(UTC), _MINUTE
        while (latest := self.after(instant - back)) > instant:
            back *= 16  # a schedule that comes at all never pauses for long: parse has seen that it comes
        ahead = instant
        while ahead - latest > _SECOND:
            middle = latest + (ahead - latest) / 2
            due = self.after(middle)
            if due > instant:
                ahead = middle
            else:
                latest = due
        due = self.after(latest)
        return due if due <= instant else latest

    def next(self, count: int, instant: datetime) -> list[datetime]:
        """The next due times after an aware ``instant``, in the schedule's own time zone."""
        found: list[datetime] = []
        for _ in range(count):
            instant = self.after(instant)
            found.append(instant.astimezone(self._zone))
        return found

    @property
    def _six(self) -> str:
        return _six(self.cron)

    @property
    def _zone(self) -> zoneinfo.ZoneInfo:
        return zoneinfo.ZoneInfo(self.timezone)

    def _once(self, instant: datetime) -> datetime:
        """The next one if every clock time comes once. CronSim has a rule for this as well, but not for six fields nor
        for ``*/15 2 * * *``; so it is only given times without a zone."""
        for clock in CronSim(self._six, instant.astimezone(self._zone).replace(tzinfo=None)):
            due = self._moment(clock)
            if due > instant:  # not so for what the second of two equal hours would repeat
                return due
        raise AssertionError(self)  # parse has seen that it comes

    def _moment(self, clock: datetime) -> datetime:
        """When the clocks show this; the first time if they do so twice, the end of the gap if they never do."""
        while True:
            due = clock.replace(tzinfo=self._zone).astimezone(UTC)
            if due.astimezone(self._zone).replace(tzinfo=None) == clock:
                return due
            clock = clock.replace(second=0) + _MINUTE

    def _real(self, instant: datetime) -> datetime:
        """The next one if ticks go by real time: clocks are followed from one change to the next. (CronSim, given a
        zone, steps over a change by whole hours and so finds other times from one side of it than from the other.)"""
        offset = self._offset(instant)
        clock = (instant + offset).replace(tzinfo=None)
        while True:
            due = next(CronSim(self._six, clock)).replace(tzinfo=UTC) - offset
            change = self._change(instant, due)
            if change is None:
                return due
            instant, offset = change, self._offset(change)
            clock = (change + offset - _SECOND).replace(tzinfo=None)  # the moment of the change may be due itself

    def _offset(self, instant: datetime) -> timedelta:
        return instant.astimezone(self._zone).utcoffset() or timedelta()

    def _change(self, begin: datetime, end: datetime) -> datetime | None:
        """The moment, to the second, of the clocks' first change after ``begin`` and up to ``end``."""
        offset = self._offset(begin)
        while begin < end:  # by weeks, because over a year the change back hides the first
            ahead = min(begin + _WEEK, end)
            if self._offset(ahead) != offset:
                break
            begin = ahead
        else:
            return None
        while ahead - begin > _SECOND:
            middle = begin + (ahead - begin) / 2
            if self._offset(middle) == offset:
                begin = middle
            else:
                ahead = middle
        return ahead


def _six(cron: str) -> str:
    """The same expression, certainly with a field of seconds."""
    return cron if len(cron.split()) == 6 else f"0 {cron}"


def _takes(cron: str) -> bool:
    try:
        CronSim(cron, _ANY_YEAR)
    except (CronSimError, ValueError):  # a ValueError for numbers of thousands of digits
        return False
    return True


def _wrong_cron(cron: str) -> list[str]:
    fields = _six(cron).split()
    if len(fields) != 6:
        return [
            f"cron {cron!r}: takes five fields (minute, hour, day of month, month, day of week), or six with the "
            f"second first, has {len(cron.split())}"
        ]
    wrong = [
        f"{name} takes {taken}, is {held!r}"
        for place, ((name, taken), held) in enumerate(zip(_FIELDS.items(), fields, strict=True))
        if not _takes(" ".join(held if other == place else "*" for other in range(6)))
    ]
    if wrong:
        return [f"cron {cron!r}: {'; '.join(wrong)}. Every field takes *, lists (1,2), ranges (1-5), steps (*/2)"]
    # CronSim refuses some dates that never come, and for the others gives up its search
    if not _takes(_six(cron)) or next(CronSim(_six(cron), _ANY_YEAR), None) is None:
        return [f"cron {cron!r}: that date never comes (day of month {fields[3]}, month {fields[4]}, "
                f"day of week {fields[5]})"]  # fmt: skip
    return []


def _wrong_zone(timezone: str) -> list[str]:
    known = zoneinfo.available_timezones() - {"localtime"}  # some systems have it; it differs between machines
    if timezone in known:
        return []
    meant = closest(timezone, sorted(known))
    return [f"time zone {timezone!r} is unknown; " + (f"did you mean {meant!r}?" if meant else "one is 'Asia/Jakarta'")]

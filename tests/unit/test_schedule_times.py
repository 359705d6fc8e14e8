"""When ticks are due, above all on the days on which the clocks change, and what is said of wrong expressions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from pipelines.schedule.times import Times
from stages.base import StageError

MINUTE = timedelta(minutes=1)
BERLIN, NEW_YORK, LORD_HOWE, JAKARTA = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Jakarta"
CAIRO, HAVANA = "Africa/Cairo", "America/Havana"  # midnight is missing, and comes twice
FORWARD = {BERLIN: (2026, 3, 29), NEW_YORK: (2026, 3, 8), LORD_HOWE: (2026, 10, 4), CAIRO: (2026, 4, 24)}
BACK = {BERLIN: (2026, 10, 25), NEW_YORK: (2026, 11, 1), LORD_HOWE: (2026, 4, 5), HAVANA: (2026, 11, 1)}


def on(cron: str, zone: str, day: tuple[int, int, int]) -> list[str]:
    """The ticks of one day there, as its clocks show them."""
    begin = datetime(*day, tzinfo=ZoneInfo(zone))
    end = datetime.combine(begin.date() + timedelta(days=1), begin.time(), begin.tzinfo).astimezone(UTC)
    times, instant, found = Times.parse(cron, zone), begin.astimezone(UTC) - timedelta(seconds=1), []
    while (instant := times.after(instant)) < end:
        found.append(f"{instant.astimezone(begin.tzinfo):%H:%M %z}")
    return found


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def test_a_tick_is_due_at_the_zones_clock_and_told_in_utc() -> None:
    times = Times.parse("0 2 * * *", JAKARTA)
    due = times.after(utc(2026, 11, 29, 12))
    assert (due, due.tzinfo) == (utc(2026, 11, 29, 19), UTC)
    assert times.after(due) == utc(2026, 11, 30, 19)
    assert times.after(due - timedelta(microseconds=1)) == due


def test_people_are_told_in_the_schedules_zone() -> None:
    told = Times.parse("0 2 * * MON-FRI", BERLIN).next(3, utc(2026, 3, 27, 12))
    assert [f"{due:%a %d %H:%M %Z}" for due in told] == ["Mon 30 02:00 CEST", "Tue 31 02:00 CEST", "Wed 01 02:00 CEST"]


def test_an_instant_may_be_of_any_zone() -> None:
    times = Times.parse("0 2 * * *", JAKARTA)
    assert times.after(datetime(2026, 11, 30, 1, 59, tzinfo=ZoneInfo(JAKARTA))) == utc(2026, 11, 29, 19)


@pytest.mark.parametrize(
    ("zone", "after"), [(BERLIN, "03:00 +0200"), (NEW_YORK, "03:00 -0400"), (LORD_HOWE, "02:30 +1100")]
)
@pytest.mark.parametrize("cron", ["0 2 * * *", "15 2 * * *", "0 15 2 * * *", "0,10 2 * * *", "*/10 2 * * *"])
def test_hours_that_do_not_exist_come_once_after_the_gap(cron: str, zone: str, after: str) -> None:
    found = on(cron, zone, FORWARD[zone])
    assert found[0] == after
    assert len(found) == len(set(found))
    assert all(tick >= after for tick in found)
    if zone != LORD_HOWE or not cron.startswith("*/10"):  # half of its hour does exist
        assert len(found) == 1


@pytest.mark.parametrize("cron", ["30 1,2 * * *", "0 30 1-2 * * *", "30 0-2 * * *", "*/30 1-2 * * *"])
@pytest.mark.parametrize(("zone", "first"), [(BERLIN, "02:30 +0200"), (NEW_YORK, "01:30 -0400")])
def test_hours_that_exist_twice_come_once(cron: str, zone: str, first: str) -> None:
    found = on(cron, zone, BACK[zone])
    clocks = [tick.split()[0] for tick in found]
    assert first in found
    assert len(clocks) == len(set(clocks))


def test_half_an_hour_that_exists_twice_comes_once() -> None:
    assert on("30,45 1 * * *", LORD_HOWE, BACK[LORD_HOWE]) == ["01:30 +1100", "01:45 +1100"]
    assert on("0,15 2 * * *", LORD_HOWE, BACK[LORD_HOWE]) == ["02:00 +1030", "02:15 +1030"]


@pytest.mark.parametrize("cron", ["*/15 * * * *", "0 */15 * * * *", "*/15 0-23 * * *", "*/15 */1 * * *"])
@pytest.mark.parametrize(("zone", "day"), [*FORWARD.items(), *BACK.items(), (JAKARTA, (2026, 3, 29))])
def test_every_quarter_is_a_quarter_throughout(cron: str, zone: str, day: tuple[int, int, int]) -> None:
    times, instant = Times.parse(cron, zone), datetime(*day, tzinfo=ZoneInfo(zone)).astimezone(UTC) - timedelta(days=1)
    for _ in range(3 * 96):
        due = times.after(instant)
        assert due - instant == timedelta(minutes=15)
        instant = due


def test_clocks_that_move_half_an_hour_move_hourly_ticks() -> None:
    assert on("0 * * * *", LORD_HOWE, FORWARD[LORD_HOWE])[:3] == ["00:00 +1030", "01:00 +1030", "03:00 +1100"]
    assert on("45 * * * *", LORD_HOWE, BACK[LORD_HOWE])[:4] == [
        "00:45 +1100", "01:45 +1100", "01:45 +1030", "02:45 +1030",
    ]  # fmt: skip
    assert on("0,30 * * * *", LORD_HOWE, BACK[LORD_HOWE])[2:6] == [
        "01:00 +1100", "01:30 +1100", "01:30 +1030", "02:00 +1030",
    ]  # fmt: skip


def matching(minutes: set[int], hours: set[int], zone: str) -> Callable[[datetime], bool]:
    """What the docstring of ``Times`` says, asked of one minute."""

    def shows(clock: datetime) -> bool:
        return clock.minute in minutes and clock.hour in hours

    def due(instant: datetime) -> bool:
        now, before = (moment.astimezone(ZoneInfo(zone)) for moment in (instant, instant - MINUTE))
        if len(hours) == 24:
            return shows(now)
        missing = now.replace(tzinfo=None) - before.replace(tzinfo=None) - MINUTE
        gap = [before.replace(tzinfo=None) + MINUTE * ahead for ahead in range(1, missing // MINUTE + 1)]
        return (shows(now) and now.fold == 0) or any(map(shows, gap))

    return due


@pytest.mark.parametrize(
    ("cron", "minutes", "hours"),
    [
        ("30 * * * *", {30}, set(range(24))),
        ("10,40,50 * * * *", {10, 40, 50}, set(range(24))),
        ("30 0-2 * * *", {30}, {0, 1, 2}),
        ("*/20 */2 * * *", {0, 20, 40}, set(range(0, 24, 2))),
        ("0 45 0,1,2,3,23 * * *", {45}, {0, 1, 2, 3, 23}),
    ],
)
@pytest.mark.parametrize(("zone", "day"), [*FORWARD.items(), *BACK.items()])
def test_before_and_after_agree_with_every_minute_asked_in_turn(
    cron: str, minutes: set[int], hours: set[int], zone: str, day: tuple[int, int, int]
) -> None:
    """From a few hours before a change to a few after it, off the minute, so that no tick is at the instant asked."""
    times, due = Times.parse(cron, zone), matching(minutes, hours, zone)
    begin = datetime(*day, tzinfo=ZoneInfo(zone)).astimezone(UTC) - timedelta(hours=4)
    ticks = [begin + MINUTE * n for n in range(14 * 60) if due(begin + MINUTE * n)]
    assert len(ticks) >= 3
    for number in range(len(ticks) - 1):
        earlier, later = ticks[number : number + 2]
        for instant in (earlier, earlier + (later - earlier) / 3, later - timedelta(seconds=1)):
            assert times.after(instant) == later, (instant, earlier)
            assert times.until(instant) == earlier, (instant, later)


def test_a_rare_day_is_found_across_many_changes() -> None:
    for cron in ("0 0 29 2 *", "0 * 29 2 *"):
        times = Times.parse(cron, BERLIN)
        assert times.after(utc(2026, 1, 1)) == utc(2028, 2, 28, 23)
    assert Times.parse("0 0 29 2 *", BERLIN).until(utc(2026, 1, 1)) == utc(2024, 2, 28, 23)
    assert Times.parse("0 * 29 2 *", BERLIN).until(utc(2026, 1, 1)) == utc(2024, 2, 29, 22)


def test_every_hour_of_a_day_whose_midnight_comes_twice() -> None:
    times = Times.parse("0 * 1 11 *", HAVANA)
    assert times.after(utc(2026, 1, 1)) == utc(2026, 11, 1, 4)
    assert times.after(utc(2026, 11, 1, 4)) == utc(2026, 11, 1, 5)
    assert times.until(utc(2026, 11, 1, 5)) == utc(2026, 11, 1, 5)


def test_a_tick_at_the_instant_is_the_latest_one() -> None:
    times = Times.parse("0 2 * * *", JAKARTA)
    due = utc(2026, 11, 29, 19)
    assert times.until(due) == due
    assert times.until(due + timedelta(microseconds=1)) == due
    assert times.until(due - timedelta(microseconds=1)) == utc(2026, 11, 28, 19)


@pytest.mark.parametrize("hour", ["0", "*"])
def test_the_rarest_tick_is_found(hour: str) -> None:
    """The 29th of February was no Sunday for 40 years, because 1900 had none."""
    times = Times.parse(f"0 {hour} 29 2 */7", "UTC")
    last = utc(1880, 2, 29, 0 if hour == "0" else 23)
    assert times.until(utc(1919, 12, 31)) == last
    assert times.after(last) == utc(1920, 2, 29)


def test_the_second_comes_first() -> None:
    times = Times.parse("10 30 2 * * *", "UTC")
    assert times.after(utc(2026, 1, 1)) == utc(2026, 1, 1, 2, 30, 10)
    assert times.until(utc(2026, 1, 2, 2, 30, 9)) == utc(2026, 1, 1, 2, 30, 10)
    assert times.seconds
    assert not Times.parse("30 2 * * *", "UTC").seconds
    for every in (1, 20):
        times, instant = Times.parse(f"*/{every} * * * * *", "UTC"), utc(2026, 1, 1, 0, 0, 20)
        assert times.after(instant) == instant + timedelta(seconds=every)
        assert times.until(instant) == instant
        assert times.until(instant - timedelta(microseconds=1)) == instant - timedelta(seconds=every)


def test_either_day_matches_unless_one_begins_with_a_star() -> None:
    days = [due.day for due in Times.parse("0 0 10 * MON", "UTC").next(3, utc(2026, 6, 1))]
    assert days == [8, 10, 15]
    assert Times.parse("0 0 */2 * MON", "UTC").after(utc(2026, 6, 1)) == utc(2026, 6, 15)


@pytest.mark.parametrize(
    ("cron", "name", "held", "taken"),
    [
        ("60 2 * * *", "minute", "60", "0-59"),
        ("0 24 * * *", "hour", "24", "0-23"),
        ("0 0 0 * *", "day of month", "0", "1-31"),
        ("0 0 * 13 *", "month", "13", "1-12"),
        ("0 0 * * FRI-MON", "day of week", "FRI-MON", "0-7"),
        ("60 0 0 * * *", "second", "60", "0-59"),
        ("*/0 * * * *", "minute", "*/0", "0-59"),
        ("0 -1 * * *", "hour", "-1", "0-23"),
        ("0 1, * * *", "hour", "1,", "0-23"),
        ("*/" + "9" * 5000 + " * * * *", "minute", "999", "0-59"),
    ],
)
def test_the_wrong_field_is_named(cron: str, name: str, held: str, taken: str) -> None:
    with pytest.raises(StageError) as caught:
        Times.parse(cron, "UTC")
    [line] = str(caught.value).splitlines()
    assert f"{name} takes {taken}" in line
    assert held in line.partition(f"{name} takes")[2]
    assert line.count(" takes ") == 2  # the field's, and what every field takes


def test_every_wrong_field_is_named() -> None:
    with pytest.raises(StageError, match="minute takes 0-59, is '61'; hour takes 0-23, is 'x'; day of week takes"):
        Times.parse("61 x * * 9", "UTC")


@pytest.mark.parametrize(("cron", "count"), [("", 0), ("@daily", 1), ("0 2 * *", 4), ("0 0 2 * * * 2026", 7)])
def test_the_wrong_number_of_fields_is_named(cron: str, count: int) -> None:
    with pytest.raises(StageError, match=rf"five fields .* or six with the second first, has {count}$"):
        Times.parse(cron, "UTC")


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 2,4,6 *", "0 0 0 31 11 *", "0 0 */31 2 MON#2"])
def test_a_date_that_never_comes_is_refused(cron: str) -> None:
    with pytest.raises(StageError, match="that date never comes"):
        Times.parse(cron, "UTC")


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 0 * 2 MON#5", "0 0 31 * *", "0 0 30 2 MON", "0 0 L 2 *"])
def test_a_date_that_comes_is_taken(cron: str) -> None:
    assert Times.parse(cron, "UTC").after(utc(2026, 1, 1)) > utc(2026, 1, 1)


@pytest.mark.parametrize(("zone", "meant"), [("Asia/Jakata", JAKARTA), ("asia/jakarta", JAKARTA), ("Berlin", BERLIN)])
def test_the_zone_that_was_meant_is_named(zone: str, meant: str) -> None:
    with pytest.raises(StageError, match=f"time zone '{zone}' is unknown; did you mean '{meant}'"):
        Times.parse("0 2 * * *", zone)


@pytest.mark.parametrize(
    "zone", ["", "/etc/localtime", "../UTC", "Europe", "Europe/", "UTC\0", "x" * 5000, "localtime", "é"]
)
def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(StageError, match="is unknown"):
        Times.parse("0 2 * * *", zone)


def test_a_wrong_expression_and_a_wrong_zone_are_both_named() -> None:
    with pytest.raises(StageError) as caught:
        Times.parse("0 25 * * *", "Asia/Jakata")
    cron, zone = str(caught.value).splitlines()
    assert "hour takes 0-23, is '25'" in cron
    assert JAKARTA in zone


def test_spaces_do_not_count() -> None:
    assert Times.parse("  0  2 * *\t* ", "UTC") == Times.parse("0 2 * * *", "UTC")

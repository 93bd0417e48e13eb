"""Times and durations as people read and type them, in a time zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

_SPAN: Final = re.compile(r"([1-9]\d{0,5})([smhdw])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LOCAL: Final = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?", re.ASCII)
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


class Zone:
    """A time zone: the one of a name, or that of the machine."""

    def __init__(self, name: str | None) -> None:
        """Raise `ValueError` if there is no zone of this name."""
        self.name = name
        self._zone = None if name is None else _zone_of(name)

    def at(self, time: datetime) -> datetime:
        """Return a time in this zone."""
        return time.astimezone(self._zone)

    def label(self, *times: datetime) -> str:
        """Return what a heading calls the zone of some times, such as `UTC+1`."""
        offsets = {_offset(self.at(time)) for time in times}
        return offsets.pop() if len(offsets) == 1 else self.name or "local time"

    @property
    def iana_name(self) -> str:
        """The name of the zone for the service; the machine's own one, if that is known."""
        return self.name or _machine_zone()

    def read(self, text: str) -> datetime | None:
        """Return the time of a date, or a date and a time, in this zone; None if it is neither."""
        if not _LOCAL.fullmatch(text):
            return None
        time = datetime.fromisoformat(text)
        return time.astimezone() if self._zone is None else time.replace(tzinfo=self._zone)


def _zone_of(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name!r}; try Europe/Berlin or UTC") from None


def _machine_zone() -> str:
    """Return the IANA name of the machine's zone; UTC if it cannot be found out."""
    import os
    from pathlib import Path

    named = os.environ.get("TZ", "").removeprefix(":")
    if not named:
        target = str(Path("/etc/localtime").resolve())
        named = target.partition("zoneinfo/")[2]
    try:
        _zone_of(named)
    except ValueError:
        return "UTC"
    return "UTC" if named in {"", "Etc/UTC"} else named


def _offset(time: datetime) -> str:
    seconds = int((time.utcoffset() or timedelta()).total_seconds())
    if not seconds:
        return "UTC"
    hours, rest = divmod(abs(seconds) // _MINUTE, 60)
    minutes = f":{rest:02}" if rest else ""
    return f"UTC{'-' if seconds < 0 else '+'}{hours}{minutes}"


def read_span(text: str) -> timedelta | None:
    """Return the length of a span such as `90m` or `7d`; None if it is not one."""
    match = _SPAN.fullmatch(text)
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None


def utc_text(time: datetime) -> str:
    """Return a time as the service writes it."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def short_time(time: datetime, now: datetime) -> str:
    """Return a time for a narrow column, without its date or year if `now` has the same."""
    if time.date() == now.date():
        return f"today {time:%H:%M:%S}"
    # %b would depend on the locale.
    month = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()[time.month - 1]
    if time.year == now.year:
        return f"{month} {time.day:2} {time:%H:%M:%S}"
    return f"{time:%Y}-{time:%m-%d %H:%M}"


def long_time(time: datetime) -> str:
    """Return a time of a zone in full."""
    return f"{time:%Y}-{time:%m-%d %H:%M:%S}"


def labelled_time(text: str, zone: Zone) -> str:
    """Return a time of the service in full in a zone, with the offset of the zone."""
    time = datetime.fromisoformat(text)
    return f"{long_time(zone.at(time))} ({zone.label(time)})"


def duration_text(seconds: float) -> str:
    """Return a duration in the two largest units that it has."""
    if seconds < 0:
        return f"-{duration_text(-seconds)}"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{seconds:.1f}s" if seconds < 10 and seconds % 1 else f"{whole}s"  # noqa: PLR2004
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d {whole % _DAY // _HOUR:02}h"

"""Unix times as dates."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNITS = (1, 10**3, 10**6, 10**9)  # in a second


def unit_of(last: float) -> int | None:
    """Units in a second of Unix times in s, ms, us or ns, the last of which is in 1973 to 2286; else None."""
    return next((unit for unit in _UNITS if 10**8 * unit <= last < 10**10 * unit), None)


def to_iso(time: float, unit: int | None) -> str | None:
    """A Unix time as an ISO date-time in UTC; None without a unit, or if it is not in years 1 to 9999."""
    if unit is None:
        return None
    seconds, rest = divmod(time, unit)
    try:
        since = timedelta(seconds=int(seconds), microseconds=int(rest * 10**6 // unit))
        return (EPOCH + since).isoformat()
    except OverflowError:
        return None

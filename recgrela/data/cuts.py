"""The two times of a global time split: the first of valid and the first of test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

import numpy as np

from recgrela.data.dates import EPOCH, to_iso, unit_of
from recgrela.data.split import TEST, VALID
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError
from recgrela.system.text import quote

Times = Callable[[], Iterable[np.ndarray]]
_DIGIT = 16  # bits


class Cuts(NamedTuple):
    """Events from a time on are of its phase, or of a later one.

    Attributes:
        valid: the first time of valid.
        test: the first time of test.
        unit: units of the times in a second; None if they are no Unix times.
    """

    valid: float
    test: float
    unit: int | None

    def phases(self, times: np.ndarray) -> np.ndarray:
        """The phases [n] uint8 of events at some times [n]."""
        is_held_out, is_test = times >= self.valid, times >= self.test
        return is_held_out * np.uint8(VALID) + is_test * np.uint8(TEST - VALID)

    def describe(self) -> dict[str, float | str | None]:
        """Both times, as numbers and as ISO dates (None if they are no dates), for JSON."""
        return {
            "valid_from": self.valid,
            "valid_from_date": to_iso(self.valid, self.unit),
            "test_from": self.test,
            "test_from_date": to_iso(self.test, self.unit),
        }


def find_cuts(times: Times, config: DataConfig, source: str, ticks: int | None = None) -> Cuts:
    """The cuts of a configuration.

    Test begins at `split_date`, or at the first time after the `split_quantile` of the times. Valid begins at
    `split_valid_date`, or at the first time after the same quantile of the times before test. The quantile q
    of n times is number floor((n - 1) q) of the sorted times, from 0; an interpolated quantile separates the
    same events.

    Args:
        times: gives all times, int64, float32 or float64, in blocks; called several times.
        config: the settings.
        source: the name of the data in messages.
        ticks: units of the times in a second; None: unknown, so the last time decides, see `unit_of`.

    Raises:
        DataError: a date is outside of the data, or no time is after a quantile.
    """
    ends = [(block.min().item(), block.max().item()) for block in times() if block.size]
    first, last = min(low for low, _ in ends), max(high for _, high in ends)
    is_whole = all(block.dtype.kind == "i" for block in times())
    unit, quantile = ticks or unit_of(last), config.split_quantile

    def show(time: float) -> str:
        return to_iso(time, unit) or str(time)

    def read(name: str, text: str) -> float:
        value = _read_time(name, text, unit)
        if value is None:
            raise DataError(
                f"{source}: data.{name} {quote(text)} is a date, but the times, {first} to {last}, are no "
                "Unix times; give a number"
            )
        if config.order == "recbole":
            return float(np.float32(value))
        return math.ceil(value) if is_whole else float(value)

    date = config.split_date
    test = _after_quantile(times, quantile) if date is None else read("split_date", date)
    if test is None:
        raise DataError(
            f"{source}: no event is after the data.split_quantile {quantile} of the times, {show(last)}; "
            "lower it, or give data.split_date"
        )
    if not first < test <= last:
        raise DataError(
            f"{source}: data.split_date {quote(str(date))} has no event "
            f"{'before' if test <= first else 'at or after'} it; give a time between the first and the last "
            f"of the data, {show(first)} and {show(last)}"
        )
    if config.split_valid_date is not None:
        valid = read("split_valid_date", config.split_valid_date)
        if not first < valid < test:
            raise DataError(
                f"{source}: data.split_valid_date {quote(config.split_valid_date)} is not between the first "
                f"event, {show(first)}, and the first of test, {show(test)}"
            )
        return Cuts(valid, test, unit)

    def earlier() -> Iterable[np.ndarray]:
        return (block[block < test] for block in times())

    valid_or_none = _after_quantile(earlier, quantile)
    if valid_or_none is None:
        raise DataError(
            f"{source}: no event is between the data.split_quantile {quantile} of the times before test and "
            f"test, which begins at {show(test)}; lower it, or give data.split_valid_date"
        )
    return Cuts(valid_or_none, test, unit)


def _read_time(name: str, text: str, unit: int | None) -> float | None:
    """A number, or a date in the unit of the times; None for a date if there is no unit."""
    try:
        value = float(text)
        if not math.isfinite(value):
            raise DataError(f"data.{name}: {quote(text)} is not a finite number")
        try:
            return int(text)
        except ValueError:
            return value
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        raise DataError(
            f"data.{name}: {quote(text)} is neither an ISO date, such as 2000-12-31, nor a number"
        ) from None
    since = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)) - EPOCH
    return None if unit is None else since / timedelta(seconds=1) * unit


def _after_quantile(times: Times, quantile: float) -> float | None:
    """The first time after a quantile of the times; None if no time is.

    Selects the 64-bit key of the quantile digit by digit, from the highest, so that blocks need not be in
    memory together.
    """
    rank = math.floor((sum(block.size for block in times()) - 1) * quantile)
    prefix = np.uint64(0)
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, dtype=np.int64)
        for block in times():
            keys = _keys(block)
            if shift < 64 - _DIGIT:
                keys = keys[keys >> np.uint64(shift + _DIGIT) == prefix]
            digits = (keys >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=counts.size)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[digit] - counts[digit])
        prefix = (prefix << np.uint64(_DIGIT)) | np.uint64(digit)
    later = [block[_keys(block) > prefix] for block in times()]
    return min((block.min().item() for block in later if block.size), default=None)


def _keys(times: np.ndarray) -> np.ndarray:
    """Keys [n] uint64 in the order of times [n]."""
    sign = np.uint64(1 << 63)
    if times.dtype.kind == "i":
        return times.astype(np.int64).view(np.uint64) ^ sign
    bits = (times.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    return np.where(bits & sign, ~bits, bits | sign)

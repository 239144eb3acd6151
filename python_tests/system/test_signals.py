"""Stop signals at safe points."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from recgrela.system.signals import Stopped, StopSignals, stop_signals

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(Exception):
    """The handler before; in a command, the end of the process."""


def end(signum: int, frame: object) -> None:
    raise Ended(signum)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {signum: signal.signal(signum, end) for signum in STOPS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", STOPS)
def test_the_first_signal_stops_at_the_next_check(signum: signal.Signals) -> None:
    with StopSignals() as signals:
        signals.check()
        os.kill(os.getpid(), signum)
        with pytest.raises(Stopped) as stop:
            signals.check()
    assert stop.value.signum == signum
    assert all(signal.getsignal(other) is end for other in STOPS)


@pytest.mark.parametrize("first", STOPS)
@pytest.mark.parametrize("second", STOPS)
def test_a_second_signal_ends_the_process_except_for_sighup(
    first: signal.Signals, second: signal.Signals
) -> None:
    """A terminal that closes sends SIGHUP twice, itself and through its shell."""
    with StopSignals() as signals:
        os.kill(os.getpid(), first)
        if second == signal.SIGHUP:
            os.kill(os.getpid(), second)
        else:
            with pytest.raises(Ended):
                os.kill(os.getpid(), second)
        with pytest.raises(Stopped) as stop:
            signals.check()
    assert stop.value.signum == first


def test_ignored_signals_remain_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stop_signals() == [signal.SIGINT, signal.SIGTERM]
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        signals.check()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

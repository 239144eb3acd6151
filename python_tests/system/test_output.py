"""Standard streams that are closed, full, or cannot encode a character."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest

from recgrela.system.console import say
from recgrela.system.errors import RunError
from recgrela.system.output import OutputClosed, display_console, result_console, tell, write_result


def without_reader() -> IO[str]:
    """A pipe whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full() -> IO[str]:
    return open("/dev/full", "w")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the streams, and drops the texts that broken ones hold."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    before = (sys.stdout, sys.stderr)
    yield
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream not in before:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.close()


CASES = [(without_reader, "Broken pipe"), (full, "No space left on device"), (lambda: None, "it is closed")]


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize(("make", "reason"), CASES)
def test_display_is_dropped_with_one_note(
    make: object, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(make)
    sys.stdout = make()
    console = display_console()
    for line in ("first", "second"):
        say(console, line)
    note = f"note: cannot write to standard output ({reason}); its lines are dropped from now on\n"
    assert capsys.readouterr().err == note


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize(("make", "reason"), CASES)
def test_results_that_cannot_be_written_are_an_error(make: object, reason: str) -> None:
    assert callable(make)
    sys.stdout = make()
    for write in (write_result, result_console().print):
        if make is without_reader:
            with pytest.raises(OutputClosed):
                write("text")
        else:
            with pytest.raises(RunError, match=f"cannot write to standard output: {reason}"):
                write("text")


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize("make", [without_reader, full, lambda: None])
def test_a_line_for_a_broken_stderr_is_lost(make: object) -> None:
    assert callable(make)
    sys.stderr = make()
    tell("line")
    display_console(stderr=True).print("line")
    sys.stdout = full()
    say(display_console(), "line")  # the note is lost too


@pytest.mark.usefixtures("streams")
def test_characters_that_the_encoding_lacks() -> None:
    reader, writer = os.pipe()
    sys.stdout = os.fdopen(writer, "w", encoding="latin-1")
    say(display_console(), "caf\u00e9 \u0416 \udcff")
    with pytest.raises(RunError, match=r"its encoding latin-1 has no '\\u0416'; set PYTHONIOENCODING=utf-8"):
        write_result("title \u0416")
    assert os.read(reader, 100) == b"caf\xe9 \\u0416 \\udcff\n"
    os.close(reader)


def test_closed_descriptors_are_not_given_to_files() -> None:
    """Unwritten text at exit, and a file that is opened while descriptors 0 to 2 are closed."""
    script = """
import os, sys
from recgrela.system.output import standard_streams
with standard_streams():
    assert os.open("/dev/zero", os.O_RDONLY) > 2
    print("lost")
sys.exit(7)
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for redirected in ("<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1"):
        command = ["bash", "-c", f'exec "$0" -c "$1" {redirected}', sys.executable, script]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert (done.returncode, done.stdout, done.stderr) == (7, "", ""), redirected

"""Standard output and standard error, which may be closed, full, or unable to encode a character.

Display, such as the progress of training, does not end a command: what cannot be written is dropped. Results,
such as recommendations, are written completely or the command fails.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal, cast

from rich.console import Console

from recgrela.system.errors import RunError, one_line

WIDE = 10_000  # columns of an output that is not a terminal, which has no width


class OutputClosed(Exception):
    """The reader of standard output has ended, as `head` does after its last line."""


class StandardStream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` as it is now, with a rule for failures.

    Args:
        name: the stream.
        is_display: whether the text is only display. Then the first failure is noted on stderr, and all that
            follows is dropped. Otherwise a failure is an exception, and so is a character that the stream's
            encoding does not have, which display shows as an escape.

    `write` and `flush` raise, unless the text is display:
        OutputClosed: the reader has ended.
        RunError: the stream is closed, its disk is full, or its encoding lacks a character.
    """

    def __init__(self, name: Literal["stdout", "stderr"], is_display: bool) -> None:
        self._name = {"stdout": "standard output", "stderr": "standard error"}[name]
        self._stream: IO[str] | None = getattr(sys, name)  # None if the descriptor was closed at the start
        self._is_display = is_display
        self._is_dropped = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding, from which rich chooses the characters of tables."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor. Raises OSError if it has none."""
        if self._stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._stream.fileno()

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str) -> int:
        """Write a text; see the class."""
        if not self._is_dropped:
            try:
                self._write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush; see the class."""
        if not self._is_dropped and self._stream is not None and not self._stream.closed:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _write(self, text: str) -> None:
        if self._stream is None or self._stream.closed:
            raise OSError(errno.EBADF, "it is closed")
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            if not self._is_display:
                raise RunError(
                    f"cannot write to {self._name}: its encoding {self.encoding} has no "
                    f"{text[error.start : error.start + 1]!a}; set PYTHONIOENCODING=utf-8"
                ) from error
            self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))

    def _fail(self, error: OSError) -> None:
        reason = error.strerror or one_line(error)
        if self._is_display:
            self._is_dropped = True
            if self._name == "standard output":
                tell(f"note: cannot write to standard output ({reason}); its lines are dropped from now on")
        elif isinstance(error, BrokenPipeError):
            raise OutputClosed from error
        else:
            raise RunError(f"cannot write to {self._name}: {reason}") from error


def display_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console for display, on stdout or stderr; see `StandardStream`. A quiet one drops everything."""
    stream = StandardStream("stderr" if stderr else "stdout", is_display=True)
    return Console(file=_text_file(stream), quiet=quiet)


def result_console(is_wide: bool = False, quiet: bool = False) -> Console:
    """A console for results on stdout; see `StandardStream`.

    Args:
        is_wide: whether lines are not wrapped if stdout is not a terminal.
        quiet: whether everything is dropped.
    """
    stream = StandardStream("stdout", is_display=False)
    width = WIDE if is_wide and not stream.isatty() else None
    return Console(file=_text_file(stream), width=width, quiet=quiet)


def write_result(text: str) -> None:
    """Write a text to stdout; see `StandardStream` for the exceptions."""
    stream = result_stream()
    stream.write(text)
    stream.flush()


def result_stream() -> IO[str]:
    """Stdout as a file for results; see `StandardStream`. The caller flushes it."""
    return _text_file(StandardStream("stdout", is_display=False))


def tell(text: str) -> None:
    """Write a line to stderr. If that fails, the line is lost, because there is nowhere else to say it."""
    stream = StandardStream("stderr", is_display=True)
    stream.write(text + "\n")
    stream.flush()


@contextmanager
def standard_streams() -> Iterator[None]:
    """A context in which descriptors 0 to 2 are open, and after which unwritten text is no error.

    A closed descriptor is opened on /dev/null. Its number would be given to the next file that is opened, and
    a library that prints a warning would write into that file. In the end, a stream that cannot be flushed is
    redirected there too: Python's own flush at exit would change the exit code.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            _settle(stream)


def _settle(stream: IO[str] | None) -> None:
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except OSError:  # has been reported by the StandardStream that wrote the text
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _text_file(stream: StandardStream) -> IO[str]:
    return cast(IO[str], stream)

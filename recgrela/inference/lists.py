"""Files of users, items and histories that a command reads."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from recgrela.data.formats.unpacking import Limit, Within
from recgrela.inference.arguments import to_id, to_ids
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.files import expand_path
from recgrela.system.out_of_memory import MemoryPhase
from recgrela.system.suggest import near_file
from recgrela.system.text import one_line, quote

READING = MemoryPhase("reading a file of users, items or histories", "split the file")


@READING
def read_lines(path: str, what: str) -> list[str]:
    """The lines of a text file, or of stdin for "-", without empty ones and outer spaces.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has no line with text.
    """
    lines = [line.strip() for line in read_text(path, what).split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{what} {path}: no line has text; expected one id a line")
    return lines


def read_list(text: str, what: str) -> list[str]:
    """The ids of a list ``ID,ID,...`` on a command line, as in CSV: an id with a comma is in double quotes.

    Raises:
        ConfigError: the list is empty, or a quotation mark is not closed; the message begins with ``what``.
    """
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{what}: {quote(text)} is not ID,ID,... with quotes as in CSV: {error}") from None
    ids = [token.strip() for token in (rows[0] if rows else []) if token.strip()]
    if not ids:
        raise ConfigError(f"{what}: no id is given; expected ID,ID,...")
    return ids


@READING
def read_histories(path: str) -> dict[str, list[str]]:
    """Histories of a file of JSON lines, or of stdin for "-", by user.

    A line is {"user": ID, "items": [ID, ...]} or [ID, ...]; without a user, its number, from 1, is the user.
    Ids are texts or whole numbers.

    Raises:
        DataError: the file cannot be read; a line is not such a value; a user occurs twice.
    """
    histories: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path, "--histories").split("\n"), 1):
        if not line.strip():
            continue
        where = f"--histories {path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {one_line(error)}") from None
        except RecursionError:
            raise DataError(f"{where}: lists are nested too deeply") from None
        if isinstance(value, list):
            value = {"user": str(number), "items": value}
        if not isinstance(value, dict) or not isinstance(value.get("items"), list):
            raise DataError(f'{where}: expected {{"user": ID, "items": [ID, ...]}} or [ID, ...]')
        user = to_id(value.get("user", number), where)
        if user in histories:
            raise DataError(f"{where}: the user {quote(user)} occurs twice")
        histories[user] = to_ids(value["items"], where)
    if not histories:
        raise DataError(f"--histories {path}: no line has a history")
    return histories


def read_text(path: str, what: str) -> str:
    """The text of a UTF-8 file, or of stdin for "-".

    Raises:
        DataError: it cannot be read, is not UTF-8, or is larger than half of the memory that is available (a
            device such as /dev/zero has no end).
    """
    where = f"{what} {path}"
    limit = Limit.of_plain_text()
    try:
        if path == "-":
            if sys.stdin is None:
                raise DataError(f"{what} -: standard input is closed")
            data = Within(sys.stdin.buffer, limit, where).read_all()
        else:
            with expand_path(path, what).open("rb") as file:
                data = Within(file, limit, where).read_all()
        return str(data, "utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file{near_file(Path(path))}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror}") from None

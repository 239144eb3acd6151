"""JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.support.event_files import (
    BY_TIME,
    EVENTS,
    fails,
    read,
)
from recgrela.data.formats import json_lines


def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_PIECE", 100)
    rows = [
        f'{{"who": {{"id": "{u}", "x": [1]}}, "item.id": {i}, "t": {t}, "y": "é"}}\n' for u, i, t in EVENTS
    ]
    names = {"user_column": "who.id", "item_column": "item.id", "time_column": "t"}
    assert read(tmp_path / "x.json", "\ufeff" + "\n".join(rows), **names) == BY_TIME
    rows[3] = rows[3].replace("60", "60.5")  # the first time is whole
    assert read(tmp_path / "x.ndjson", "".join(rows), **names) == BY_TIME
    rows[1] = rows[1].replace('"a"', "null")  # a missing id is dropped, as in every format
    assert read(tmp_path / "x.jsonl", "".join(rows), **names)["a"] == ["20", "30"]


A_LIST = ": a list; write an object a line, as jq -c '.[]' does"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[", A_LIST),
        ('[{"user_id": 1}]', A_LIST),
        (
            "{'user_id': 1}",
            ": a Python literal, not JSON; docs/data.md has a command that converts such files",
        ),
        ("{", ": an object over several lines; write an object a line, as jq -c . does"),
        ("5", ": expected an object for an event, not 5"),
        ('{"user_id": "a", "i', ": not JSON: Unterminated string starting at: line 1 column 18 (char 17)"),
        (
            '{"user_id": 5, "item_id": 3, "timestamp": 4}',
            ", column 'user_id': 5 is a number, but the first one is text; write all alike",
        ),
        (
            '{"user_id": "a", "item_id": [3], "timestamp": 4}',
            ", column 'item_id': [3] is not text or a number",
        ),
        (
            '{"user_id": "a", "item_id": true, "timestamp": 4}',
            ", column 'item_id': True is not text or a number",
        ),
        (
            f'{{"user_id": "a", "item_id": {2**63}, "timestamp": 4}}',
            f", column 'item_id': {2**63} is not a whole number below 2^63; write such values as text",
        ),
        (
            '{"user_id": "a", "item_id": 3, "timestamp": "noon"}',
            ", column 'timestamp': 'noon' is text, but the first one is a number; write all alike",
        ),
        (
            b'{"user_id": "\xe9", "item_id": 3, "timestamp": 4}',
            ", column 'user_id': '\\udce9' is not UTF-8 text (wrong encoding)",
        ),
    ],
)
def test_wrong_lines_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str | bytes, expected: str
) -> None:
    monkeypatch.setattr(json_lines, "_PIECE", 100)
    good = b'{"user_id": "a", "item_id": 3, "timestamp": 4}\n'
    content = good * 5 + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good
    fails(tmp_path / "x.jsonl", content, f", line 7{expected}")


def test_the_first_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    among = "among 'user', 'user.id', 'item_id', 'timestamp'"
    line = '{"user": {"id": 1}, "item_id": 2, "timestamp": 3}'
    hint = "did you mean 'user.id'? set data.user_column"
    fails(path, line, f", line 1: no column 'user_id' {among}; {hint}")
    fails(path, "", ": empty file")


def test_values_that_the_first_events_of_json_lack(tmp_path: Path) -> None:
    """The first number decides on the type of a column, not the null before it."""
    content = (
        '{"user": null, "item_id": 1, "timestamp": 1}\n{"item_id": null, "timestamp": 2}\n'
        '{"user": {"id": 5}, "item_id": 1, "timestamp": 3}\n'
        '{"user": {"id": 5}, "item_id": 2, "timestamp": 2.5}\n'
    )
    assert read(tmp_path / "x.jsonl", content, user_column="user.id") == {"5": ["2", "1"]}
    ids = ", line 4, column 'user.id': 'x' is text, but the first one is a number; write all alike"
    fails(
        tmp_path / "x.jsonl",
        content.replace('5}, "item_id": 2', '"x"}, "item_id": 2'),
        ids,
        user_column="user.id",
    )


def test_a_comma_after_an_object(tmp_path: Path) -> None:
    line = '{"user_id": 1, "item_id": 2, "timestamp": 3}'
    fix = "a comma follows the object; remove it, an object a line is enough"
    fails(tmp_path / "x.json", f"{line},\n{line}\n", f", line 1: {fix}")

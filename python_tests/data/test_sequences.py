"""One sequence a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.support.event_files import (
    BY_FILE,
    fails,
    read,
)
from recgrela.data.formats import pieces


@pytest.mark.parametrize(
    ("content", "second"),
    [("a, 1, 2\n", ","), ("a\t1,2,3\n", ","), ("a 1;2\n", ";"), ("a: 1 2\n", ":")],
)
def test_sequences_with_two_separators(tmp_path: Path, content: str, second: str) -> None:
    given = {"format": "sequences", "order": "file"}
    fix = "write one between all ids, or set data.separator if the other is a part of ids"
    expected = f", line 1: ids are separated by ' ' and by '{second}'; {fix}"
    fails(tmp_path / "x.txt", content, expected, **given)
    user, *items = content.split()
    assert read(tmp_path / "x.txt", content, separator="space", **given) == {user: items}
    assert read(tmp_path / "x.txt", "a, 1, 2\n", separator=", ", **given) == {"a": ["1", "2"]}


def test_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SIZE", 10)
    given = {"format": "sequences", "order": "file"}
    content = "\ufeffb 20 10\r\n\r\n a  10\t20 \r\n\r\na 30"
    assert read(tmp_path / "x.txt", content, **given) == BY_FILE
    assert read(tmp_path / "x.txt", "b,20,10\na,10,20,30\n", **given) == BY_FILE
    assert read(tmp_path / "x.txt", "b::20::10\na::10::20::30\n", separator="::", **given) == BY_FILE
    assert read(tmp_path / "x.txt", "b 20 10\ra 10 20 30\r", **given) == BY_FILE
    assert read(tmp_path / "x.txt", "é 1 ü\n", **given) == {"é": ["1", "ü"]}
    alone = "; is the separator space?"
    fails(tmp_path / "x.txt", "a 1\n\nb\nc 2\n", f", line 3: 'b' has no items{alone}", **given)
    bad = ", line 2: an id is not UTF-8 text (wrong encoding, or a damaged file)"
    fails(tmp_path / "x.txt", b"a 1\nb \xe9\n", bad, **given)
    fails(tmp_path / "x.txt", b"a 1\nb 2\0\n", bad, **given)
    order = "data.order: PATH has sequences without times; set --data.order file"
    fails(tmp_path / "x.txt", content, order, format="sequences")
    fix = "for a user and their items a line, set data.format=sequences; else data.separator"
    fails(tmp_path / "x.txt", "1 2 3 4\n2 3\n", f": the first lines have 4, 2 values; {fix}")

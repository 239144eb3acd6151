"""Users' texts in messages and on terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from recgrela.system.console import say
from recgrela.system.errors import DataError
from recgrela.system.suggest import near_miss
from recgrela.system.text import MAX_MESSAGE, listed, one_line, printable, quote, shorten


def test_characters_that_act_on_a_terminal_are_escaped() -> None:
    for letter, shown in {
        "\x1b[31m": "\\x1b[31m",
        "a\nb\t": "a\\x0ab\\x09",
        "\x9b": "\\x9b",
        "\u202etxt": "\\u202etxt",
        "a\u200bb": "a\\u200bb",
        "\u2066": "\\u2066",
        "a\u2028b\u2029": "a\\u2028b\\u2029",
        "x\udcff.csv": "x\\udcff.csv",
        "\U000e0041": "\\U000e0041",
    }.items():
        assert printable(letter) == shown
    for text in ("", "Amélie", "千と千尋の神隠し\u3000", "a\u00a0b", "👍🏽", "[bold]x[/bold]", "c:\\x"):
        assert printable(text) == text


def test_a_title_is_no_markup_and_no_emoji_code() -> None:
    file = io.StringIO()
    say(Console(file=file, force_terminal=True, width=40), "[red]:bomb:[/red] \x1b[2J\u202e " + "x" * 60)
    assert file.getvalue() == "[red]:bomb:[/red] \\x1b[2J\\u202e " + "x" * 60 + "\n"


def test_long_texts_are_shortened() -> None:
    assert quote("x" * 100) == repr("x" * 100)
    assert quote("x" * 12_445) == "'" + "x" * 100 + "'... (12,345 more characters)"
    assert quote(["x" * 300]).endswith("... (204 more characters)")
    assert quote(10**5000) == "an integer of thousands of digits"
    assert shorten("abc", 2) == "ab... (1 more characters)"
    assert listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listed(range(5000)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4,990 more"
    assert len(listed(["x" * 1000] * 1000)) < 1500


def test_a_message_is_bounded_and_keeps_both_ends() -> None:
    text = str(DataError("file.csv: \x1b[2J\n" + "x" * 100_000 + "; do this"))
    assert text.startswith("file.csv: \\x1b[2J\\x0axxx") and text.endswith("xxx; do this")
    assert len(text) < MAX_MESSAGE + 50 and "more characters" in text
    assert one_line(ValueError("a\n  b\x00" + "y" * 10_000)).startswith("a b\\x00yyy")
    assert len(one_line("y" * 10_000)) < MAX_MESSAGE + 50
    assert str(DataError("short")) == "short"


@pytest.mark.parametrize("word", ["x" * 101, "x" * 1_000_000])
def test_long_words_have_no_suggestion(word: str) -> None:
    assert near_miss(word, [word[:-1]] * 3) == ""
    assert near_miss("title", ["y" * 1_000_000, "titel"]) == "; did you mean 'titel'?"

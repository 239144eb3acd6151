"""Suggestions for misspelt names, in bounded time."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path

import pytest

from recgrela.system import suggest
from recgrela.system.suggest import MAX_COMPARED, near_file, near_miss


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggest, "SECONDS", 0.1)


def test_an_endless_number_of_words_ends() -> None:
    assert near_miss("epocs", chain(["epochs"], (f"word {n}" for n in count()))) == "; did you mean 'epochs'?"
    assert near_miss("zzz", map(str, count())) == ""
    assert near_miss("user-", (f"user-{n}" for n in count())).startswith("; did you mean 'user-")


def test_long_words_are_compared_in_bounded_time() -> None:
    words = ("a" * 50 + f"{n:050}" for n in count())
    assert near_miss("b" * 100, words) == ""


def test_words_after_the_first_are_compared_if_they_are_alike() -> None:
    words = [*(f"x{n}" for n in range(2 * MAX_COMPARED)), "learning_rate"]
    assert near_miss("learning_rats", words) == "; did you mean 'learning_rate'?"


def test_the_closest_of_several_words_is_suggested() -> None:
    assert near_miss("item_ids", ["item", "user_id", "item_id", "items"]) == "; did you mean 'item_id'?"


def test_files(tmp_path: Path) -> None:
    for name in ("ml-1m.inter", "other"):
        (tmp_path / name).touch()
    assert near_file(tmp_path / "ml-1m.inte") == "; did you mean 'ml-1m.inter'?"
    assert near_file(tmp_path / "no" / "ml-1m.inter") == ""

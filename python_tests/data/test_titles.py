"""Similar titles, beside a plain computation."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from recgrela.data.titles import similar_titles, terms

KNOWN = ["Toy Story", "Batman", "Batman Forever", "Star Wars", "Toy Soldiers, The", "Star Trek IV", "Batman"]


def cosines(title: str, known: list[str]) -> list[float]:
    """TF-IDF cosines term by term, from the definition."""
    df = Counter(term for other in known for term in set(terms(other)))

    def vector(text: str) -> dict[str, float]:
        return {
            term: count * (math.log((1 + len(known)) / (1 + df[term])) + 1)
            for term, count in Counter(terms(text)).items()
        }

    def norm(values: dict[str, float]) -> float:
        return math.sqrt(sum(value**2 for value in values.values()))

    one = vector(title)
    others = [vector(other) for other in known]
    return [
        sum(one[term] * other.get(term, 0) for term in one) / (norm(one) * norm(other)) for other in others
    ]


def test_terms() -> None:
    assert list(terms("Toy Story!")) == [
        *("toy", "3: to", "3:toy", "3:oy "),
        *("story", "3: st", "3:sto", "3:tor", "3:ory", "3:ry "),
    ]
    assert list(terms("ＡＢ é")) == ["ab", "3: ab", "3:ab ", "é", "3: é "]  # noqa: RUF001


def test_cosines_are_exact_and_ties_are_ordered() -> None:
    new = ["Toy Story 2", "batman returns", "Star Wars: Episode I", "Batman"]
    found = similar_titles(new, KNOWN, len(KNOWN))
    for place, title in enumerate(new):
        expected = np.array(cosines(title, KNOWN))
        assert found.cosines[place] == pytest.approx(np.sort(expected)[::-1], abs=1e-12)
        assert found.cosines[place] == pytest.approx(expected[found.rows[place]], abs=1e-12)
    assert found.rows[0, 0] == 0 and found.rows[2, 0] == 3
    assert found.rows[3, :2].tolist() == [1, 6]
    assert found.cosines[3, :2] == pytest.approx(1)
    few = similar_titles(new, KNOWN, 2)
    assert few.rows.tolist() == found.rows[:, :2].tolist()


def test_a_title_without_a_common_term() -> None:
    assert similar_titles(["xqz", "?"], KNOWN, 3).cosines.tolist() == [[0, 0, 0]] * 2
    assert similar_titles(["Batman"], ["Batman", "..."], 5).rows.tolist() == [[0, 1]]

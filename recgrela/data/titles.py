"""Similar titles: the cosine of TF-IDF vectors of words and of character trigrams."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

GRAM = 3  # characters


class Neighbours(NamedTuple):
    """The most similar known titles of each new title, best first.

    Attributes:
        rows: [A, k] int64, indices of known titles.
        cosines: [A, k] float64, from 0 to 1; 0 for known titles without a common term.
    """

    rows: np.ndarray
    cosines: np.ndarray


def similar_titles(new: Sequence[str], known: Sequence[str], k: int) -> Neighbours:
    """The k known titles most similar to each new one; equal cosines are ordered by index.

    The terms of a title are its words and the trigrams of " word ", in lower case. A term that occurs n times
    in a title has the weight n idf, with idf = log((1 + N) / (1 + df)) + 1 for df of N known titles that
    contain it (as scikit-learn's TfidfVectorizer); the vector of a title has length 1.

    Args:
        new, known: titles; at least one known.
        k: number of neighbours; fewer are returned if fewer titles are known.
    """
    numbers: dict[str, int] = {}  # of terms
    rows, columns, counts = [], [], []
    for place, title in enumerate(known):
        for term, count in Counter(terms(title)).items():
            rows.append(place)
            columns.append(numbers.setdefault(term, len(numbers)))
            counts.append(count)
    row, column = np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64)
    df = np.bincount(column, minlength=len(numbers))
    idf = np.log((1 + len(known)) / (1 + df)) + 1
    weight = np.asarray(counts, dtype=np.float64) * idf[column]
    lengths = np.sqrt(np.bincount(row, weight**2, minlength=len(known)))
    weight /= lengths[row]
    by_term = np.argsort(column, kind="stable")  # the titles that contain a term, term by term
    row, weight, starts = row[by_term], weight[by_term], np.concatenate(([0], np.cumsum(df)))
    unknown_idf = np.log(1 + len(known)) + 1  # of a term in no known title

    k = min(k, len(known))
    found = Neighbours(np.empty((len(new), k), dtype=np.int64), np.empty((len(new), k)))
    for place, title in enumerate(new):
        scores, square = np.zeros(len(known)), 0.0
        for term, count in Counter(terms(title)).items():
            number = numbers.get(term)
            value = count * (unknown_idf if number is None else idf[number])
            square += value**2
            if number is not None:
                part = slice(starts[number], starts[number + 1])
                scores[row[part]] += value * weight[part]  # a title occurs once in the part
        if square:
            scores /= np.sqrt(square)
        best = _largest(scores, k)
        found.rows[place], found.cosines[place] = best, scores[best]
    return found


def terms(title: str) -> Iterator[str]:
    """The words of a title, and the trigrams of each word between spaces."""
    cleaned = (c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", title).casefold())
    for word in "".join(cleaned).split():
        yield word
        padded = f" {word} "
        for start in range(len(padded) - GRAM + 1):
            yield f"{GRAM}:{padded[start : start + GRAM]}"


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest scores, largest first; equal scores are ordered by index."""
    cut = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero(scores >= cut)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]

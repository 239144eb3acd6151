"""Rules for single events, the same for all formats: missing ids and low ratings."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from recgrela.data.formats.columns import Arrays
from recgrela.data.formats.id_columns import id_text
from recgrela.settings.data import DataConfig

# Ids that programs write for a missing one, but that may also be real names.
SPELLINGS = {"NA", "N/A", "<NA>", "nan", "NaN", "NAN", "NaT", "null", "NULL", "nil", "none", "None", "\\N"}


class Kept(NamedTuple):
    """The events that are left of a file.

    Attributes:
        arrays: the events, and the ids of those that are no missing ones.
        dropped: numbers of events that were dropped, by reason.
        unusual: numbers of events left whose id is one of `SPELLINGS`, by id.
    """

    arrays: Arrays
    dropped: dict[str, int]
    unusual: dict[str, int]


def keep_valid(arrays: Arrays, config: DataConfig) -> Kept:
    """Drop events without a user or item id, and then those with a low rating.

    An id is missing if it has only whitespace, or is one of ``config.missing_ids``.
    """
    missing = {id_text(spelling) for spelling in config.missing_ids}
    keep: Any = np.True_
    dropped: dict[str, int] = {}

    def drop(bad: np.ndarray, reason: str) -> None:
        nonlocal keep
        count = int(np.count_nonzero(keep & bad))
        if count:
            dropped[reason] = count
            keep = keep & ~bad

    known: dict[str, Any] = {}
    for codes, tokens, role in (
        (arrays.users, arrays.user_tokens, "user"),
        (arrays.items, arrays.item_tokens, "item"),
    ):
        bad = [place for place, token in enumerate(tokens) if not token.strip() or token in missing]
        if bad:
            is_bad = np.zeros(len(tokens), dtype=bool)
            is_bad[bad] = True
            drop(is_bad[codes], f"no {role} id")
            number = (np.cumsum(~is_bad) - 1).astype(np.int32)
            gone = set(bad)
            known[f"{role}s"] = number[codes]
            known[f"{role}_tokens"] = [token for place, token in enumerate(tokens) if place not in gone]
    if config.min_rating is not None and arrays.ratings is not None:
        reason = f"no {config.rating_column} of at least {config.min_rating:g}"
        drop(~(arrays.ratings >= config.min_rating), reason)
    arrays = arrays._replace(**known)
    if dropped:
        arrays = arrays._replace(users=arrays.users[keep], items=arrays.items[keep], times=arrays.times[keep])
    return Kept(arrays._replace(ratings=None), dropped, _unusual(arrays))


def _unusual(arrays: Arrays) -> dict[str, int]:
    found: Counter[str] = Counter()
    for codes, tokens in ((arrays.users, arrays.user_tokens), (arrays.items, arrays.item_tokens)):
        for place in [place for place, token in enumerate(tokens) if token in SPELLINGS]:
            found[tokens[place]] += int(np.count_nonzero(codes == place))
    return {token: count for token, count in sorted(found.items()) if count}

"""Histories to recommend for, from a user of a run's data or from original item ids."""

from __future__ import annotations

from collections.abc import Sequence

from recgrela.runs.items import Items
from recgrela.runs.saved import SavedRun, load_data
from recgrela.system.errors import DataError
from recgrela.system.suggest import near_miss


def user_history(run: SavedRun, user: str, data_path: str | None = None) -> list[int]:
    """All item ids of a user, oldest first, from the run's data.

    Args:
        run: the run.
        user: the user's original id.
        data_path: where the data is now, if it has moved.

    Raises:
        DataError: the user is unknown; the message suggests a similar id.
    """
    data = load_data(run, data_path)
    try:
        row = data.user_row(user)
    except DataError as error:
        raise DataError(f"{error}{near_miss(user, data.user_ids)}") from error
    return data.items[data.offsets[row] : data.offsets[row + 1]].tolist()


def token_history(items: Items, tokens: Sequence[str]) -> list[int]:
    """Converts original item ids to item ids.

    Raises:
        DataError: an item is unknown; the message suggests a similar id, or the id of a title.
    """
    known = {token: item for item, token in enumerate(items.tokens) if item > 0}
    by_title = {title: items.tokens[item] for item, title in enumerate(items.titles) if title}
    for token in tokens:
        if token in by_title and token not in known:
            raise DataError(f"item {token!r} is a title; use its id {by_title[token]!r}")
        if token not in known:
            raise DataError(
                f"item {token!r} is not among the run's {len(known)} items{near_miss(token, known)}"
            )
    return [known[token] for token in tokens]

"""Published counts of known data sets after filtering, which protocol.json records next to a run's.

A data set is recognized by its file name alone, so different counts show that the data differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownSet:
    """A row of the paper's Table 1, and its filter.

    Attributes:
        users: number of users after filtering, padding id included.
        items: number of items after filtering, padding id included.
        events: number of events after filtering.
        filter: the settings of DataConfig that give these counts.
    """

    users: int
    items: int
    events: int
    filter: dict[str, int | None]

    @property
    def counts(self) -> dict[str, int]:
        return {"users": self.users, "items": self.items, "events": self.events}


def _filter(
    users: tuple[int, int | None] = (5, None), items: tuple[int, int | None] = (5, None)
) -> dict[str, int | None]:
    return {
        "min_user_events": users[0],
        "max_user_events": users[1],
        "min_item_events": items[0],
        "max_item_events": items[1],
    }


KNOWN_SETS = {
    "ml-1m": KnownSet(6_041, 3_417, 999_611, _filter()),
    "ml-20m": KnownSet(138_494, 18_346, 19_984_024, _filter()),
    "ml-32m": KnownSet(200_949, 43_885, 31_921_467, _filter()),
    "netflix": KnownSet(120_378, 16_087, 21_767_054, _filter((50, None), (50, 15_000))),
}


def find_known(source: str) -> KnownSet | None:
    """The known set named by a file, or by the zip that contains it, without suffixes; None if unknown."""
    for file in re.split(r"(?<=\.zip):", source.lower()):
        known = KNOWN_SETS.get(re.split(r"[/\\]", file)[-1].split(".")[0])
        if known is not None:
            return known
    return None

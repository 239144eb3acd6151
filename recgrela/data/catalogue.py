"""Known sets: the published counts after filtering, so that a run can say whether its data is the same."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownSet:
    """A row of the paper's Table 1 and the filter behind it.

    Attributes:
        users: users left, with the padding id.
        items: items left, with the padding id.
        events: events left.
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
    """The known set that a path names: the file, its zip or a folder of it, without endings."""
    for part in reversed(re.split(r"[/\\:]", source.lower())):
        known = KNOWN_SETS.get(part.split(".")[0])
        if known is not None:
            return known
    return None

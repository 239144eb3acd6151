"""Known sets: the published counts after filtering, which a run's protocol.json puts beside its own counts.

A set is known by its file's name alone: the counts say what to expect of that name, not that the data is the
same.
"""

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
    """The known set that a file's own name tells, without endings: of the file, or of the zip it lies in."""
    for file in re.split(r"(?<=\.zip):", source.lower()):
        known = KNOWN_SETS.get(re.split(r"[/\\]", file)[-1].split(".")[0])
        if known is not None:
            return known
    return None

"""What to read and how to prepare it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from recgrela.system.errors import ConfigError
from recgrela.system.suggest import near_miss

Format = Literal["auto", "recbole", "movielens", "csv", "parquet"]
Order = Literal["time", "recbole"]

MAX_SYNTHETIC_EVENTS = 2**28  # about 20 GB while they are made
MAX_SYNTHETIC_PLACES = 2**31  # users times items: about 3 GB


@dataclass(frozen=True)
class DataConfig:
    """The data of a run.

    Args:
        path: "synthetic", or a file, folder or zip: RecBole .inter(.gz), MovieLens ratings.dat, ratings.csv
            or u.data, CSV or Parquet with named columns.
        format: How to read the path; "auto" goes by the file name.
        user_column: Name of the user column (RecBole, CSV and Parquet).
        item_column: Name of the item column (RecBole, CSV and Parquet).
        time_column: Name of the time column (RecBole, CSV and Parquet).
        min_user_events: Users with fewer events are dropped (k-core, repeated until nothing changes).
        max_user_events: Users with more events are dropped; none by default.
        min_item_events: Items with fewer events are dropped.
        max_item_events: Items with more events are dropped; none by default.
        order: "time" sorts by the exact time, "recbole" by the time as float32 (steps of 64 s near 1e9), as
            for the published numbers; ties keep the file's order in both.
        max_len: Histories are cut to their last max_len items.
        eval_max_len: The same in evaluation and for recommendations, max_len by default: a causal model with
            rotary positions also takes longer histories than those it was trained on.
        synthetic_seed: Seed of the synthetic set.
        synthetic_users: Users of the synthetic set.
        synthetic_items: Items of the synthetic set.
        synthetic_events: Mean number of events a user of the synthetic set.
    """

    path: str = "synthetic"
    format: Format = "auto"
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = "timestamp"
    min_user_events: int = 5
    max_user_events: int | None = None
    min_item_events: int = 5
    max_item_events: int | None = None
    order: Order = "time"
    max_len: int = 200
    eval_max_len: int | None = None
    synthetic_seed: int = 0
    synthetic_users: int = 1000
    synthetic_items: int = 500
    synthetic_events: int = 60

    @property
    def history_len(self) -> int:
        """Items that a history is cut to where nothing is trained."""
        return self.eval_max_len or self.max_len

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its range."""
        for name, allowed in (("format", get_args(Format)), ("order", get_args(Order))):
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(allowed)
                raise ConfigError(f"data.{name}: {value!r} is not one of {known}{near_miss(value, allowed)}")
        if not self.path.strip():
            raise ConfigError("data.path: empty; give a file, a folder, a zip or 'synthetic'")
        columns: dict[str, str] = {}
        for name in ("user_column", "item_column", "time_column"):
            other = columns.setdefault(getattr(self, name), name)
            if other != name:
                raise ConfigError(
                    f"data.{name}: {getattr(self, name)!r} is data.{other} too; name two different columns"
                )
        for name, low, high in (
            ("min_user_events", 0, None),
            ("min_item_events", 0, None),
            ("max_len", 1, 2**31 - 1),
            ("eval_max_len", 1, 2**31 - 1),
            ("synthetic_seed", 0, 2**64 - 1),
            ("synthetic_users", 1, None),
            ("synthetic_items", 20, 2**24),
            ("synthetic_events", 5, None),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if value < low:
                raise ConfigError(f"data.{name}: {value} is below {low}")
            if high is not None and value > high:
                raise ConfigError(f"data.{name}: {value} is above {high}")
        for kind, most in (("events", MAX_SYNTHETIC_EVENTS), ("items", MAX_SYNTHETIC_PLACES)):
            each = getattr(self, f"synthetic_{kind}")
            if self.synthetic_users * each > most:
                raise ConfigError(
                    f"data.synthetic_users: {self.synthetic_users} times data.synthetic_{kind} {each} is "
                    f"above {most}, too much for memory; lower one of them"
                )
        for kind in ("user", "item"):
            least, most = getattr(self, f"min_{kind}_events"), getattr(self, f"max_{kind}_events")
            if most is not None and most < max(least, 1):
                raise ConfigError(
                    f"data.max_{kind}_events: {most} is below {max(least, 1)}, so nothing could remain"
                )

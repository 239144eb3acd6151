"""Settings of the data: what to read and how to prepare it."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

from recgrela.settings.delimited import check_columns, separator_of
from recgrela.settings.fields import MAX_SEED, NOTHING, Settings, setting
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path

Format = Literal["auto", "recbole", "movielens", "csv", "json", "sequences", "parquet", "arrow"]
Order = Literal["time", "recbole", "item", "file"]
ORDERS: tuple[Order, ...] = get_args(Order)
Duplicates = Literal["keep", "drop"]
SplitKind = Literal["leave_one_out", "time", "files"]
TargetRule = Literal["last", "first", "random", "all"]

MAX_SYNTHETIC_EVENTS = 2**28  # about 20 GB of memory during generation
MAX_SYNTHETIC_PAIRS = 2**31  # users times items, about 3 GB of memory


@dataclass(frozen=True)
class DataConfig(Settings):
    """The data of a run."""

    section: ClassVar[str] = "data"

    # A resumed run compares the hash of the events instead of the path.
    path: str | list[str] = setting(
        "synthetic",
        "File, folder, zip or pattern such as 'logs/*.csv' in a known format, several of them, or synthetic.",
        affects=NOTHING,
    )
    format: Format = setting("auto", "Format of the data; auto: by the file's name.")
    user_column: str = setting("user_id", "Name of the user column (of all formats with named columns).")
    item_column: str = setting("item_id", "Name of the item column.")
    time_column: str = setting("timestamp", "Name of the time column.")
    separator: str = setting(
        "auto",
        "Separator of columns of text: tab, comma, semicolon, pipe, space (one or more spaces or tabs), or "
        "the text itself, such as '::'; auto: found from the first lines.",
    )
    columns: str | None = setting(
        None,
        "Names of the columns of text without a header, such as user_id,item_id,_,timestamp, with _ for one "
        "to ignore; null: the first line is a header.",
    )
    time_format: str | None = setting(
        None,
        "Format of times as text, as of strptime, such as %d/%m/%Y; null: numbers, or ISO 8601 dates and "
        "times, in UTC unless they name a zone.",
    )
    missing: str = setting(
        "", "Spellings of a missing id, such as NA,null; empty ids and nulls are always missing."
    )
    rating_column: str = setting("rating", "Name of the column of ratings, read for min_rating.")
    min_rating: float | None = setting(
        None, "Drop events with a lower rating, or none, before all other filters; null: read no ratings."
    )
    duplicates: Duplicates = setting(
        "keep", "Events of one user with one item at one time: keep all, or drop all but the first."
    )
    min_user_events: int = setting(
        5, "Drop users with fewer events; the filters repeat until nothing changes.", min=0
    )
    max_user_events: int | None = setting(None, "Drop users with more events; null: no limit.")
    min_item_events: int = setting(5, "Drop items with fewer events.", min=0)
    max_item_events: int | None = setting(None, "Drop items with more events; null: no limit.")
    order: Order = setting(
        "time",
        "Order of a user's events: time; recbole: by time rounded to float32, as RecBole orders sets unless "
        "their settings normalise times first (ml-1m, but not its ml-100k); item: by time, ties by item id; "
        "file: as in the file, without times.",
    )
    split: SplitKind = setting(
        "leave_one_out",
        "Split: last events of each user, events after a time, or events of files of your own.",
    )
    split_quantile: float = setting(
        0.9,
        "Split by time: share of events before test, and of those the share before valid.",
        above=0,
        below=1,
    )
    split_date: str | None = setting(
        None, "Split by time: first time of test, ISO date or number of the file; null: by split_quantile."
    )
    split_valid_date: str | None = setting(
        None, "Split by time: first time of valid; null: by split_quantile of the events before test."
    )
    split_targets: TargetRule | None = setting(
        None, "Held-out events of a user that are targets; null: last (split by time), all (files)."
    )
    valid_path: str | None = setting(
        None, "Split by files: the events of valid; those of data.path are for training.", affects=NOTHING
    )
    test_path: str | None = setting(None, "Split by files: the events of test.", affects=NOTHING)
    max_len: int = setting(200, "Maximum length of a history; its last items are kept.", min=1)
    eval_max_len: int | None = setting(
        None, "Maximum length in evaluation and recommendation; null: max_len.", min=1
    )
    max_unpacked_gb: float | None = setting(
        None,
        "Limit of what a compressed file unpacks to, in 10^9 bytes; null: half of the available memory.",
        above=0,
        affects=NOTHING,
    )
    eval_users: int | None = setting(
        None, "Maximum number of users in evaluation, the same in every run; null: all.", min=1
    )
    synthetic_seed: int = setting(0, "Seed of the synthetic data.", min=0, max=MAX_SEED)
    synthetic_users: int = setting(1000, "Number of synthetic users.", min=1)
    synthetic_items: int = setting(500, "Number of synthetic items.", min=20, max=2**24)
    synthetic_events: int = setting(60, "Mean number of events per synthetic user.", min=5)

    @property
    def paths(self) -> list[str]:
        """The paths."""
        return self.path if isinstance(self.path, list) else [self.path]

    @property
    def missing_ids(self) -> frozenset[str]:
        """The spellings of a missing id, besides the empty one."""
        return frozenset(name.strip() for name in self.missing.split(",")) - {""}

    @property
    def rating_to_read(self) -> str | None:
        """The column of ratings if a setting needs it."""
        return None if self.min_rating is None else self.rating_column

    @property
    def history_len(self) -> int:
        """Maximum length of a history in evaluation and recommendation."""
        return self.eval_max_len or self.max_len

    @property
    def target_rule(self) -> TargetRule:
        """The held-out events of a user that are targets, if the split is by time or by files."""
        return self.split_targets or ("all" if self.split == "files" else "last")

    def check_together(self) -> None:
        if not all(path.strip() for path in self.paths):
            raise ConfigError("data.path: empty; give a file, a folder, a zip or 'synthetic'")
        columns: dict[str, str] = {}
        for name in ("user_column", "item_column", "time_column", "rating_column"):
            other = columns.setdefault(getattr(self, name), name)
            if other != name:
                raise ConfigError(
                    f"data.{name}: {getattr(self, name)!r} is also data.{other}; use two different columns"
                )
        separator_of(self.separator)
        if self.columns is not None:
            wanted = {key: name for name, key in columns.items()}
            if self.order == "file":
                del wanted["time_column"]
            if self.min_rating is None:
                del wanted["rating_column"]
            check_columns(self.columns, wanted)
        if self.order == "file" and self.duplicates == "drop":
            raise ConfigError("data.duplicates: 'drop' compares times, which data.order 'file' does not read")
        for kind, limit in (("events", MAX_SYNTHETIC_EVENTS), ("items", MAX_SYNTHETIC_PAIRS)):
            number = getattr(self, f"synthetic_{kind}")
            if self.synthetic_users * number > limit:
                raise ConfigError(
                    f"data.synthetic_users: {self.synthetic_users} times data.synthetic_{kind} {number} is "
                    f"above {limit}, too much for memory; lower one of them"
                )
        self._check_split()
        for kind in ("user", "item"):
            low, high = getattr(self, f"min_{kind}_events"), getattr(self, f"max_{kind}_events")
            if high is not None and high < max(low, 1):
                least = f"data.min_{kind}_events {low}" if low > 1 else "1"
                raise ConfigError(
                    f"data.max_{kind}_events: {high} is below {least}, so no {kind} would remain"
                )

    def _check_split(self) -> None:
        """Raises ConfigError for a setting that the split does not use."""
        paths, dates = ("valid_path", "test_path"), ("split_date", "split_valid_date")
        used: dict[str, tuple[SplitKind, ...]] = dict.fromkeys(paths, ("files",))
        used |= dict.fromkeys((*dates, "split_quantile"), ("time",))
        used["split_targets"] = ("time", "files")
        # The filter would change files that somebody has split.
        filters = ("min_user_events", "max_user_events", "min_item_events", "max_item_events")
        used |= dict.fromkeys(filters, ("leave_one_out", "time"))
        defaults = {field.name: field.default for field in fields(self)}
        for name, kinds in used.items():
            if self.split not in kinds and getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"data.{name}: has no effect with data.split {self.split}, only with {' or '.join(kinds)}"
                )
        if self.split == "time" and self.order == "file":
            raise ConfigError(f"data.split: time needs times, which data.order {self.order} does not read")
        for name in paths:
            if (path := getattr(self, name)) is not None and not path.strip():
                raise ConfigError(f"data.{name}: empty; give a file, a folder or a zip")


def without_split(config: DataConfig, path: str | list[str] | None = None) -> DataConfig:
    """Settings that read all events of a path, by default the same, without filter or split."""
    default = DataConfig()
    values: dict[str, Any] = {name: getattr(default, name) for name in vars(default) if "split" in name}
    values |= dict.fromkeys(("max_user_events", "max_item_events", "valid_path", "test_path"))
    return replace(config, **values, path=path or config.path, min_user_events=0, min_item_events=0)


def with_absolute_path(config: DataConfig) -> DataConfig:
    """The same settings with absolute paths, so that a run folder works from any directory.

    Raises:
        ConfigError: a path is not a path.
    """
    found: dict[str, Any] = {}
    for name in ("path", "valid_path", "test_path"):
        given = getattr(config, name)
        if given is None or (name, given) == ("path", "synthetic"):
            continue
        paths = [_absolute(name, path) for path in (given if isinstance(given, list) else [given])]
        found[name] = paths if isinstance(given, list) else paths[0]
    return replace(config, **found)


def _absolute(name: str, path: str) -> str:
    try:
        place = expand_path(path, f"data.{name}")
        if glob.has_magic(path) and not place.is_absolute() and not os.path.lexists(place):
            return os.path.join(glob.escape(os.getcwd()), place)
        return str(place.resolve())
    except RuntimeError as error:  # a loop of links
        raise ConfigError(f"data.{name}: {path}: {error}") from error

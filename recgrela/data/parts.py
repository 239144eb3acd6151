"""Packs events that are too many for memory, given in parts: they are grouped by user in buckets on disk.

The result is the one that `load` would give for all events in one file. Memory holds a part, a bucket, and
arrays and ids of all items:

1. The events of every part go to buckets by a hash of their user, with their place in the whole.
2. The k-core filter drops events of one bucket after another, round by round: it knows the number of events
   of every item, and all events of a user are in one bucket.
3. The cuts of a split by time are found. The users of every bucket, with their events in order, go to groups
   by the place of their first event.
4. The users of every group are sorted by that place, split and appended to the packed form.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from recgrela.data.buckets import Buckets, IdBuckets
from recgrela.data.cuts import Cuts, find_cuts
from recgrela.data.events import Events, joined_sha256, joined_source
from recgrela.data.formats.joining import SameTimes, added
from recgrela.data.held_out import held_out_files
from recgrela.data.ids import hash_ids, id_bytes
from recgrela.data.packing import PackedWriter
from recgrela.data.prepare import (
    compared_times,
    describe,
    filter_ranges,
    in_range,
    item_ranks,
    nothing_left,
    time_order,
)
from recgrela.data.reading import DUPLICATE, check_left, describe_reading, first_of_duplicates
from recgrela.data.split import TRAIN, LeaveOneOutCounts, Splitter
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError

BUCKETS = 256
_BINS = 1 << 16  # of places, to make groups of about equal numbers of events


def pack_parts(parts: Iterable[Events], out: Path, config: DataConfig) -> None:
    """Filter, order and write the events of all parts as packed interactions.

    Args:
        parts: events in the order of the whole; one part is in memory at a time.
        out: the folder, which must not exist. Temporary files are beside it and take about 40 bytes an event.
        config: filter, order and split; the files of valid and test are read after all parts.

    Raises:
        ConfigError: the folder exists.
        DataError: no events are left after filtering, or some parts have dates and others plain numbers.
        RunError: a file cannot be written.
    """
    with (
        PackedWriter(out, has_split=config.split != "leave_one_out") as writer,
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as at,
    ):
        packing = _Packing(Path(at), config)
        for part in parts:
            packing.add(part)
        for phase, part in held_out_files(config):
            packing.add(part, phase)
        packing.number()
        packing.filter()
        packing.group()
        packing.write(writer)


class _Packing:
    """The steps of `pack_parts`, in this order: add, number, filter, group, write."""

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self._folder, self._config = folder, config
        self._ids = IdBuckets(folder, "ids", BUCKETS)
        self._events: Buckets | None = None
        self._codes: dict[str, int] = {}  # of the items
        self._item_counts = np.zeros(0, dtype=np.int64)
        self._read, self._sources, self._titles = 0, list[Events](), dict[str, str]()
        self._num_parts = 0  # without the files of valid and test
        self._times, self._duplicates = SameTimes(), 0

    def add(self, part: Events, phase: int = TRAIN) -> None:
        """Step 1. The phase is that of a file of a split by files."""
        ticks = self._times.ticks
        self._times.add(part)
        times = self._times.scaled(part.times, part.ticks, part.source)
        if self._events is None:
            self._dtype = _record(times.dtype)
            self._events = Buckets(self._folder, "events", BUCKETS, self._dtype)
        else:
            self._change_times(ticks, np.result_type(times, self._dtype["time"]))
        dtype = self._dtype
        tokens = pa.array(part.user_tokens, pa.large_string())
        buckets = (hash_ids(*id_bytes(tokens)) % np.uint64(BUCKETS)).astype(np.int64)
        # The number of each user in its bucket: after the earlier ones, in the order of the part.
        order = np.argsort(buckets, kind="stable")
        sizes = np.bincount(buckets, minlength=BUCKETS)
        numbers = np.empty(buckets.size, dtype=np.int64)
        numbers[order] = np.arange(buckets.size) + np.repeat(
            self._ids.sizes - np.cumsum(sizes) + sizes, sizes
        )
        self._ids.append(buckets, tokens)
        items = np.array([self._codes.setdefault(token, len(self._codes)) for token in part.item_tokens])
        events = np.empty(part.users.size, dtype=dtype)
        events["place"] = self._read + np.arange(events.size)
        events["time"], events["user"], events["item"] = times, numbers[part.users], items[part.items]
        events["phase"] = phase
        self._events.append(buckets[part.users], events)
        before, self._item_counts = self._item_counts, np.bincount(events["item"], minlength=len(self._codes))
        self._item_counts[: before.size] += before
        self._read += events.size
        self._titles |= part.titles
        none = np.empty(0, dtype=np.int32)
        self._num_parts += phase == TRAIN
        self._sources.append(
            replace(part, users=none, items=none, times=none, user_tokens=[], item_tokens=[], titles={})
        )

    def _change_times(self, ticks: int | None, kind: np.dtype) -> None:
        """The times so far, which were in 1/`ticks` s, in the unit and type that all parts so far have."""
        before, dtype = self._buckets(), _record(kind)
        if ticks == self._times.ticks and dtype == self._dtype:
            return
        self._events, self._dtype = Buckets(self._folder, "events", BUCKETS, dtype), dtype
        for bucket in range(BUCKETS):
            found = before.read(bucket)
            found["time"] = self._times.scaled(found["time"], ticks, self._source)
            self._events.replace(bucket, found.astype(dtype))

    def number(self) -> None:
        """The rest of step 1: a user of several parts, which has several numbers so far, gets one."""
        events, drop = self._buckets(), self._config.duplicates == "drop"
        for bucket in range(BUCKETS):
            found, codes = events.read(bucket), self._ids.read(bucket).dictionary_encode()
            found["user"] = codes.indices.to_numpy()[found["user"]]
            self._ids.replace(bucket, codes.dictionary)
            if drop:
                first = first_of_duplicates(found["user"], found["item"], found["time"])
                gone, found = found["item"][~first], found[first]
                self._duplicates += gone.size
                self._item_counts -= np.bincount(gone, minlength=self._item_counts.size)
            events.replace(bucket, found)

    def filter(self) -> None:
        """Step 2."""
        users, items = filter_ranges(self._config)
        events, changed = self._buckets(), True
        check_left(self._source, self._read, added(part.dropped for part in self._sources))
        while changed:
            changed = False
            allowed, counts = in_range(self._item_counts, items), np.zeros_like(self._item_counts)
            for bucket in range(BUCKETS):
                found = events.read(bucket)
                keep = in_range(np.bincount(found["user"]), users)[found["user"]] & allowed[found["item"]]
                if not keep.all():
                    changed = True
                    found = found[keep]
                    events.replace(bucket, found)
                counts += np.bincount(found["item"], minlength=counts.size)
            self._item_counts = counts
        if not self._item_counts.any():
            raise nothing_left(self._source, self._read - self._duplicates, self._config)

    def group(self) -> None:
        """Step 3."""
        first_items = np.full(self._item_counts.size, self._read)
        bins = np.zeros(_BINS, dtype=np.int64)  # events by the bin of their user's first event
        for bucket in range(BUCKETS):
            found = self._buckets().read(bucket)
            np.minimum.at(first_items, found["item"], found["place"])
            first, counts = _first_places(found)
            np.add.at(bins, self._bins(first[counts > 0]), counts[counts > 0])
        order = np.argsort(first_items, kind="stable")[: np.count_nonzero(self._item_counts)]
        ids = np.zeros(first_items.size, dtype=np.int32)
        ids[order] = np.arange(1, order.size + 1)
        tokens = list(self._codes)
        self._item_ids = ["[PAD]", *(tokens[code] for code in order)]
        ranks = item_ranks(self._item_ids[1:]) if self._config.order == "item" else None
        self._is_trained = np.zeros(order.size + 1, dtype=bool)
        self._find_cuts()
        group_of_bin = (np.cumsum(bins) - bins) * BUCKETS // bins.sum()

        record = np.dtype([("first", "<i8"), ("events", "<i8")])
        self._users = Buckets(self._folder, "users", BUCKETS, record)
        item = np.dtype([("item", "<i4"), ("phase", "|u1")])
        self._items = Buckets(self._folder, "items", BUCKETS, item)
        self._user_ids = IdBuckets(self._folder, "user_ids", BUCKETS)
        self._dropped = IdBuckets(self._folder, "dropped", BUCKETS)
        for bucket in range(BUCKETS):
            found, names = self._buckets().read(bucket), self._ids.read(bucket)
            self._buckets().remove(bucket)
            first, counts = _first_places(found, len(names))
            present = np.flatnonzero(counts)
            gone = np.flatnonzero(counts == 0)
            self._dropped.append(np.full(gone.size, bucket), names.take(pa.array(gone)))
            groups = np.zeros(len(names), dtype=np.int64)
            groups[present] = group_of_bin[self._bins(first[present])]
            users = np.empty(present.size, dtype=record)
            users["first"], users["events"] = first[present], counts[present]
            times = compared_times(found["time"], self._config.order)
            if self._cuts is not None:
                found["phase"] = self._cuts.phases(times)
            ties = None if ranks is None else ranks[ids[found["item"]] - 1]
            found = found[time_order(found["user"], times, found["phase"], ties)]
            items = np.empty(found.size, dtype=item)
            items["item"], items["phase"] = ids[found["item"]], found["phase"]
            self._is_trained[items["item"][items["phase"] == TRAIN]] = True
            self._users.append(groups[present], users)
            self._user_ids.append(groups[present], names.take(pa.array(present)))
            self._items.append(groups[found["user"]], items)

    def _find_cuts(self) -> None:
        """The cuts of a split by time; None for another split."""
        config = self._config
        self._cuts: Cuts | None = None

        def times() -> Iterator[np.ndarray]:
            for bucket in range(BUCKETS):
                yield compared_times(self._buckets().read(bucket)["time"], config.order)

        if config.split == "time":
            self._cuts = find_cuts(times, config, self._source, self._times.ticks)

    def write(self, writer: PackedWriter) -> None:
        """Step 4."""
        num_users = num_events = 0
        splitter, counter = Splitter(self._config.target_rule, self._is_trained), LeaveOneOutCounts()
        is_split = self._config.split != "leave_one_out"
        for group in range(BUCKETS):
            users, items = self._users.read(group), self._items.read(group)
            if not users.size:
                continue
            order = np.argsort(users["first"])
            counts = users["events"][order]
            begins = (np.cumsum(users["events"]) - users["events"])[order]
            places = np.repeat(begins - np.cumsum(counts) + counts, counts) + np.arange(items.size)
            items = items[places]
            split = splitter.add(counts, items["phase"], items["item"]) if is_split else None
            counter.add(counts)
            writer.append(self._user_ids.read(group).take(pa.array(order)), counts, items["item"], split)
            num_users, num_events = num_users + users.size, num_events + items.size
        dropped = added(part.dropped for part in self._sources)
        totals = (num_users + 1, len(self._item_ids), num_events, self._read + sum(dropped.values()))
        dropped |= {DUPLICATE: self._duplicates} if self._duplicates else {}
        unusual = added(part.unusual for part in self._sources)
        account = replace(self._sources[0], dropped=dropped, unusual=unusual)
        digests = [part.sha256 for part in self._sources]
        digest = joined_sha256([joined_sha256(digests[: self._num_parts]), *digests[self._num_parts :]])
        facts = counter.describe()
        if is_split:
            cuts = self._cuts.describe() if self._cuts is not None else {}
            facts = cuts | splitter.describe(self._source) | {"sha256": writer.split_sha256()}
        writer.finish(
            self._item_ids,
            [None, *map(self._titles.get, self._item_ids[1:])] if self._titles else None,
            digest,
            describe(self._source, self._sources[0].format, self._config, *totals, facts)
            | describe_reading(account, self._config),
            (self._dropped.read(bucket) for bucket in range(BUCKETS)),
        )

    @property
    def _source(self) -> str:
        """The parts in messages."""
        return joined_source([part.source for part in self._sources[: self._num_parts]])

    def _buckets(self) -> Buckets:
        if self._events is None:
            raise DataError("no parts are given, so there is nothing to pack")
        return self._events

    def _bins(self, places: np.ndarray) -> np.ndarray:
        return places * _BINS // self._read


def _record(times: np.dtype) -> np.dtype:
    """An event in a bucket."""
    return np.dtype([("place", "<i8"), ("time", times), ("user", "<i8"), ("item", "<i4"), ("phase", "|u1")])


def _first_places(events: np.ndarray, num_users: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The place of the first event, and the number of events, of every user of a bucket."""
    counts = np.bincount(events["user"], minlength=num_users)
    first = np.zeros(counts.size, dtype=np.int64)
    first[events["user"][::-1]] = events["place"][::-1]  # the last assignment wins
    return first, counts

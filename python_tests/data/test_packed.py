"""Packed interactions: equal to those in memory, refused if damaged, and safe while they are read."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recgrela.data import (
    DataConfig,
    EvalBatches,
    PackedWriter,
    TrainBatches,
    discard,
    load,
    open_packed,
    pack_for_host,
    write_packed,
)
from recgrela.data.ids import hash_ids, id_bytes
from recgrela.data.packed import checksum, read_header
from recgrela.system.errors import ConfigError, DataError

COUNTS = [1, 1, 5, 1, 2, 3, 4, 30, 7, 103, 1, 3, 12, 6, 1, 1, 1]  # events per user


@pytest.fixture
def packed(make_interactions, tmp_path) -> Path:
    write_packed(make_interactions(COUNTS), tmp_path / "packed")
    return tmp_path / "packed"


def assert_same_batches(one, other) -> None:
    found = list(zip(one, other, strict=True))
    assert found
    for a, b in found:
        assert a.step == b.step and a.max_seqlen == b.max_seqlen and a.global_targets == b.global_targets
        for name in ("items", "cu_seqlens", "target", "users"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("objective", ["last", "all"])
@pytest.mark.parametrize("counts", [COUNTS, [1] * 70 + [2] + [1] * 70, [500], list(range(1, 40))])
def test_batches_equal_those_in_memory(make_interactions, tmp_path, objective, counts):
    data = make_interactions(counts)
    write_packed(data, tmp_path / "packed")
    packed = open_packed(tmp_path / "packed")
    for max_len in (1, 7, 200):
        share = {"pieces": 2, "rank": 1, "world": 2}
        for settings in ({}, share):
            one, other = (TrainBatches(d, objective, max_len, 11, 3, **settings) for d in (data, packed))
            assert (one.num_targets, one.max_seqlen) == (other.num_targets, other.max_seqlen)
            assert_same_batches(one.epoch(1), other.epoch(1))
        if max(counts) >= 3:
            one, other = (EvalBatches(d, "test", max_len, 4) for d in (data, packed))
            assert one.max_seqlen == other.max_seqlen and np.array_equal(one.users, other.users)
            assert_same_batches(one, other)
            for batch in one:
                assert all(map(torch.equal, one.seen(batch), other.seen(batch)))


def test_all_fields_survive(tmp_path):
    rows = [f"é{u},i{u * 7 % 9},{u + t}" for u in range(12) for t in range(5)] + ["few,i1,3"]
    (tmp_path / "x.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    config = DataConfig(path=str(tmp_path / "x.csv"), min_item_events=0)
    data = load(config)
    write_packed(data, tmp_path / "packed")
    found = load(DataConfig(path=str(tmp_path / "packed"), min_item_events=0))
    assert torch.equal(found.items, data.items) and torch.equal(found.offsets, data.offsets)
    assert list(found.user_ids) == data.user_ids and found.user_ids[-1] == "é11"
    assert found.user_ids[2:4] == data.user_ids[2:4]
    for name in ("item_ids", "titles", "n_items", "n_users", "n_events", "sha256", "description"):
        assert getattr(found, name) == getattr(data, name), name
    assert found.dropped_users == data.dropped_users == {"few"}
    assert found.packed_sha256() == data.packed_sha256()
    assert torch.equal(found.train_item_counts(), data.train_item_counts())
    assert [found.user_row(user) for user in data.user_ids] == list(range(12))
    for user, why in (("few", "has no events left after filtering"), ("é", "is not in the data")):
        for one in (found, data):
            with pytest.raises(DataError, match=why):
                one.user_row(user)
    write_packed(found, tmp_path / "again")  # a copy of a packed folder is the same
    assert read_header(tmp_path / "again") == read_header(tmp_path / "packed")


def test_titles_survive(tmp_path):
    data = load(DataConfig(synthetic_users=30))
    write_packed(data, tmp_path / "packed")
    assert open_packed(tmp_path / "packed").titles == data.titles


def test_settings_must_be_those_of_the_packed_data(packed, tmp_path):
    data = load(DataConfig(synthetic_users=30))
    write_packed(data, tmp_path / "synthetic")
    path = str(tmp_path / "synthetic")
    assert load(DataConfig(path=path)).n_users == data.n_users
    with pytest.raises(DataError, match=r"data\.min_user_events 5, not 2; change the setting"):
        load(DataConfig(path=path, min_user_events=2))
    with pytest.raises(DataError, match=r"with data\.order .time., not .recbole."):
        load(DataConfig(path=path, order="recbole"))


# ---- damage


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_flipped_bit_in_any_file_is_found(packed):
    assert len(files(packed)) == 8
    for path in files(packed):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(DataError, match=path.name):
                open_packed(packed)
        path.write_bytes(content)
    open_packed(packed)


def test_a_missing_or_truncated_file_is_found_without_reading_it(packed):
    for path in files(packed):
        content = path.read_bytes()
        path.write_bytes(content[:-2])
        with pytest.raises(DataError, match=path.name):
            open_packed(packed, verify=False)
        path.unlink()
        with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
            open_packed(packed, verify=False)
        path.write_bytes(content)
    assert open_packed(packed).n_users == len(COUNTS)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 1}, "version 1, but this version of recgrela reads 2; convert the source again"),
        ({"n_items": 5}, "items.arrow: damaged: expected item_id and title of 5 items"),
        ({"files": {}}, "damaged: KeyError"),
        ({"files": 3}, "damaged: TypeError"),
        ({"num_targets": 3}, "users.bin: damaged: it has other numbers than header.json"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(packed, change, expected):
    header = {**read_header(packed), **change}
    header["checksum"] = checksum(header)
    (packed / "header.json").write_text(json.dumps(header))
    with pytest.raises(DataError) as caught:
        open_packed(packed)
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "[" * 100_000, "\0"])
def test_a_file_that_is_no_header_is_refused(packed, text):
    (packed / "header.json").write_text(text)
    with pytest.raises(DataError, match=r"header\.json"):
        open_packed(packed)


def test_what_is_half_written_leaves_nothing(make_interactions, tmp_path):
    def write() -> None:
        with PackedWriter(tmp_path / "packed") as writer:
            writer.append(pa.array(["a"]), np.array([2]), np.array([1, 2], np.int32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".packed.tmp").mkdir()  # of a writer that was killed
    (tmp_path / ".packed.tmp" / "items.bin").write_bytes(b"1")
    write_packed(make_interactions([3]), tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    with pytest.raises(ConfigError, match="exists already"):
        write_packed(make_interactions([3]), tmp_path / "packed")


def test_wrong_users_and_items_are_not_written(tmp_path):
    ids, one = pa.array(["a"]), np.array([1], np.int32)
    with PackedWriter(tmp_path / "packed") as writer:
        for events, items in (([0], []), ([2], [1]), ([1], [0])):
            with pytest.raises(ValueError, match="append: "):
                writer.append(ids, np.array(events), np.array(items, np.int32))
        writer.append(ids.slice(1), np.empty(0, np.int64), one[:0])
        with pytest.raises(DataError, match="no events are left"):
            writer.finish(["[PAD]", "x"], None, "", {"source": "nothing"})
        writer.append(ids, np.array([1]), one + 1)
        with pytest.raises(ValueError, match="2 item ids, but item 2 occurs"):
            writer.finish(["[PAD]", "x"], None, "", {})
    assert list(tmp_path.iterdir()) == []


SHRINK = """
import os, shutil, sys
from recgrela.data import EvalBatches, TrainBatches, open_packed
from recgrela.system.errors import DataError

def use(data):
    for objective in ("last", "all"):
        next(TrainBatches(data, objective, 10, 5000, 0).epoch(0))
    batches = EvalBatches(data, "test", 10, 1000)
    for batch in batches:
        batches.seen(batch)
    data.user_row(data.user_ids[0])

for name in ("items.bin", "users.bin", "blocks.bin", "ids.bin", "id_ends.bin", "id_hashes.bin"):
    for divisor in (1 << 40, 100, 2):
        shutil.copytree(sys.argv[1], sys.argv[2])
        data, path = open_packed(sys.argv[2]), os.path.join(sys.argv[2], name)
        use(data)
        os.truncate(path, os.stat(path).st_size // divisor)
        for reads in (use, type(data).verify):
            try:
                reads(data)
            except DataError as error:
                print(error)
        shutil.rmtree(sys.argv[2])
"""


def test_a_file_that_shrinks_is_an_error_and_no_signal(make_interactions, tmp_path):
    write_packed(make_interactions([20] * 3000), tmp_path / "packed")  # several pages of every array
    argv = [sys.executable, "-c", SHRINK, str(tmp_path / "packed"), str(tmp_path / "copy")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    assert len(lines) == 6 * 3 * 2 and lines[0].endswith("items.bin: " + CHANGED.format(240_000, 0)), lines
    assert all("was changed while it was read, from" in line for line in lines), lines


CHANGED = "was changed while it was read, from {:,} to {:,} bytes; restore it and resume"


def test_a_file_that_is_written_in_place_is_an_error(packed):
    data = open_packed(packed)
    path = packed / "items.bin"
    os.utime(path, ns=(0, 12345))
    with pytest.raises(DataError, match="was changed while it was read, in place"):
        list(TrainBatches(data, "last", 10, 50, 0).epoch(0))


# ---- ids


def test_ids_with_equal_hashes_are_told_apart(monkeypatch, make_interactions, tmp_path):
    def few(text, places):
        return hash_ids(text, places) % np.uint64(3)

    monkeypatch.setattr("recgrela.data.packing.hash_ids", few)
    monkeypatch.setattr("recgrela.data.ids.hash_ids", few)
    write_packed(make_interactions([3] * 20), tmp_path / "packed")
    data = open_packed(tmp_path / "packed")
    assert [data.user_row(f"u{row}") for row in range(20)] == list(range(20))
    assert data.user_ids.find("other") is None


def test_hashes_of_ids():
    ids = pa.array(["", "a", "ab", "ba", "é" * 40, "a" * 1000, "a"])
    found = hash_ids(*id_bytes(ids))
    assert found[1] == found[6] and np.unique(found).size == 6
    assert np.array_equal(hash_ids(*id_bytes(ids.slice(2, 3))), found[2:5])


# ---- one reader for the processes of a host


def test_packed_for_the_host(tmp_path):
    config = DataConfig(synthetic_users=60)
    data, path = load(config), pack_for_host(config)
    found = open_packed(path, verify=False)
    discard(path)
    assert not path.parent.exists()
    assert_same_batches(
        TrainBatches(found, "all", 10, 200, 0).epoch(0), TrainBatches(data, "all", 10, 200, 0).epoch(0)
    )
    assert found.user_row(data.user_ids[3]) == 3 and found.item_ids == data.item_ids
    write_packed(data, tmp_path / "mine")  # packed data need no copy, and are not removed
    path = pack_for_host(DataConfig(path=str(tmp_path / "mine")))
    assert path == (tmp_path / "mine").resolve()
    discard(path)
    assert open_packed(path).n_users == data.n_users


def test_the_folder_for_the_host_is_removed_at_exit():
    code = "from recgrela.data import *; print(pack_for_host(DataConfig(synthetic_users=60)))"
    path = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    assert path and not Path(path).parent.exists()


# ---- memory


def peak_of_use(folder: Path) -> int:
    """The largest number of bytes allocated at a time to check, train on and evaluate packed data."""
    tracemalloc.start()
    try:
        data = open_packed(folder)
        for objective in ("last", "all"):
            batches = TrainBatches(data, objective, 10, 64, 0)
            for batch in itertools.islice(batches.epoch(0), 20):
                del batch
            next(batches.epoch(0, batches.num_steps - 1))
        splits = EvalBatches(data, "test", 10, 64, max_users=200)
        for batch in splits:
            splits.seen(batch)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_users(make_interactions, tmp_path, monkeypatch):
    for name, limit in (("mapped.BLOCK_BYTES", 1 << 14), ("targets.ROWS_AT_ONCE", 512)):
        monkeypatch.setattr(f"recgrela.data.{name}", limit)
    for name in ("SLOTS_AT_ONCE", "SKIPPED_AT_ONCE"):
        monkeypatch.setattr(f"recgrela.data.sampling.{name}", 512)
    peaks = []
    for users in (1000, 1000, 30_000):
        folder = tmp_path / f"{len(peaks)}"
        write_packed(make_interactions([16] * users, n_items=50), folder)
        peaks.append(peak_of_use(folder))
    _, few, many = peaks  # the first use also fills caches
    assert many < few + 100_000  # an array over all users would add 232,000 bytes

"""Part files: a folder, a zip, a pattern or a list of files is read as one set, streamed or not."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from recgrela.data import DataConfig, load, open_packed, parts, write_packed
from recgrela.data.formats import find_files, read_parts
from recgrela.data.parts import pack_parts
from recgrela.models import CONFIGS
from recgrela.runs.folder import stem_of
from recgrela.settings.command_line import to_argv
from recgrela.settings.data import with_absolute_path
from recgrela.settings.run import RunConfig, read_run
from recgrela.system.errors import DataError

HEADER = "user_id,item_id,timestamp\n"
ROWS = [("b", 20, 50), ("a", 10, 300), ("a", 20, 100), ("b", 10, 60), ("a", 30, 200), ("c", 10, 1)]
ALL = {"min_user_events": 0, "min_item_events": 0}


@pytest.fixture(autouse=True)
def few_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer files while parts are packed, so that the tests are fast."""
    monkeypatch.setattr(parts, "BUCKETS", 3)


def config(path: Path | str | list[str], **settings) -> DataConfig:
    return DataConfig(path=path if isinstance(path, list) else str(path), **ALL | settings)


def table(rows: list[tuple[str, int, int]]) -> pa.Table:
    return pa.table(list(map(list, zip(*rows, strict=True))), names=["user_id", "item_id", "timestamp"])


def write_csv(path: Path, rows: list[tuple[str, int, int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return path


def contents(data) -> tuple:
    return (list(data.user_ids), data.item_ids, data.items.tolist(), data.offsets.tolist())


@pytest.fixture
def whole(tmp_path: Path) -> tuple:
    return contents(load(config(write_csv(tmp_path / "the whole" / "x.csv", ROWS))))


def check(made: DataConfig, whole: tuple, tmp_path: Path) -> None:
    """The parts are read as the whole, at once and one by one."""
    data = load(made)
    assert contents(data) == whole
    pack_parts(read_parts(made), tmp_path / "packed", made)
    packed = open_packed(tmp_path / "packed")
    assert contents(packed) == whole
    assert (packed.sha256, packed.description) == (data.sha256, data.description)
    load(replace(made, path=str(packed.path)))


def test_spark_folder_of_parquet(tmp_path: Path, whole: tuple) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    job = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed-c000"
    for part, rows in enumerate((slice(2), slice(2, None), slice(0))):
        made = table(ROWS)[rows.start or 0 : rows.stop]
        parquet.write_table(made, folder / f"part-0000{part}-{job}.snappy.parquet")
    for name in ("_SUCCESS", "_metadata", ".part-00000.crc"):
        (folder / name).touch()
    check(config(folder), whole, tmp_path)
    assert load(config(folder)).description["source"].endswith("c000.snappy.parquet and 1 more")


NAMES = [("2020-01.csv", "2020-02.csv"), ("log-Mar.csv", "log-Apr.csv"), ("x1.csv", "x10.csv")]


@pytest.mark.parametrize("names", NAMES)
def test_monthly_csv_files(tmp_path: Path, whole: tuple, names: tuple[str, str]) -> None:
    write_csv(tmp_path / "log" / names[0], ROWS[:3])
    write_csv(tmp_path / "log" / names[1], ROWS[3:])
    check(config(tmp_path / "log"), whole, tmp_path)


def test_hive_folders(tmp_path: Path, whole: tuple) -> None:
    write_csv(tmp_path / "log" / "year=2020" / "month=1" / "000000_0.csv", ROWS[:3])
    write_csv(tmp_path / "log" / "year=2020" / "month=2" / "000000_0.csv", ROWS[3:])
    write_csv(tmp_path / "log" / "old" / "000000_0.csv", ROWS)
    check(config(tmp_path / "log"), whole, tmp_path)


def test_zip_of_parts(tmp_path: Path, whole: tuple) -> None:
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        for name, rows in (("in/part-1.csv", ROWS[3:]), ("in/part-0.csv", ROWS[:3])):
            archive.write(write_csv(tmp_path / "x" / "x.csv", rows), name)
    check(config(tmp_path / "log.zip"), whole, tmp_path)


def test_pattern_and_list(tmp_path: Path, whole: tuple) -> None:
    first, second = write_csv(tmp_path / "a.csv", ROWS[:3]), write_csv(tmp_path / "b.csv", ROWS[3:])
    check(config(tmp_path / "?.csv"), whole, tmp_path)
    listed = load(config([str(first), str(second)]))
    assert contents(listed) == whole and listed.sha256 == load(config(tmp_path / "?.csv")).sha256
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    assert listed.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()
    turned = load(config([str(second), str(first)]))  # a list has its own order
    assert turned.user_ids == ["b", "a", "c"] and turned.item_ids[1:] == ["10", "30", "20"]
    (tmp_path / "[x].csv").write_bytes(first.read_bytes())  # a name, not a pattern
    assert load(config(tmp_path / "[x].csv")).n_events == 3


def test_parts_without_events_are_left_out(tmp_path: Path, whole: tuple) -> None:
    write_csv(tmp_path / "log" / "part-0.csv", [])
    write_csv(tmp_path / "log" / "part-1.csv", ROWS)
    (tmp_path / "log" / "part-2.csv").touch()
    check(config(tmp_path / "log"), whole, tmp_path)
    write_csv(tmp_path / "log" / "part-1.csv", [])
    with pytest.raises(DataError, match=r"part-2\.csv: empty file"):
        load(config(tmp_path / "log"))


@pytest.mark.parametrize(
    "names",
    [
        [f"part-{n}.csv" for n in range(12)],
        ["2019-Oct.csv", "2019-Nov.csv", "2019-Dec.csv", "2020-Jan.csv", "2020-Feb.csv"],
        ["year=9/january.csv", "year=9/march.csv", "year=10/april.csv", "year=10/may.csv"],
    ],
)
def test_numbers_and_months_of_names_are_in_order(tmp_path: Path, names: list[str]) -> None:
    """They decide on the order of events without times."""
    for number, name in enumerate(names):
        write_csv(tmp_path / "set" / name, [("a", number, 5)])
    for path in (tmp_path / "set", tmp_path / "set" / "**" / "*.csv"):
        data = load(config(path, order="file"))
        assert [int(data.item_ids[item]) for item in data.items] == list(range(len(names)))


def test_patterns_in_a_folder_whose_name_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "a[1]" / "x.csv", ROWS)
    monkeypatch.chdir(tmp_path / "a[1]")
    for path in ("*.csv", "x.csv", ["*.csv"]):
        assert load(with_absolute_path(config(path))).n_events == len(ROWS)


def test_packed_data_are_no_part(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "x.csv", ROWS))
    write_packed(load(config(path)), tmp_path / "packed")
    packed = str(tmp_path / "packed")
    for made in (
        config([packed, path]),
        DataConfig(path=path, split="files", valid_path=packed, test_path=path),
    ):
        with pytest.raises(
            DataError, match=r"packed: is packed, so it is a whole set and no part or file of"
        ):
            load(made)


def test_times_of_parts_have_one_unit(tmp_path: Path, whole: tuple) -> None:
    """Seconds, and then milliseconds; whole numbers, and then fractions."""
    for kind, part, rows in (("s", 0, ROWS[:3]), ("ms", 1, ROWS[3:])):
        found = table(rows).set_column(2, "timestamp", table(rows)["timestamp"].cast(pa.timestamp("s")))
        found = found.set_column(2, "timestamp", found["timestamp"].cast(pa.timestamp(kind)))
        feather.write_feather(found, tmp_path / f"part-{part}.feather")
    check(config(tmp_path / "part-*.feather"), whole, tmp_path)
    write_csv(tmp_path / "part-0.csv", ROWS[:3])
    write_csv(tmp_path / "part-1.csv", [(u, i, t + 0.5) for u, i, t in ROWS[3:]])
    data = config(tmp_path / "part-*.csv")
    pack_parts(read_parts(data), tmp_path / "other", data)
    assert contents(open_packed(tmp_path / "other")) == contents(load(data)) == whole


def fails(path: Path | list[str], expected: str, **settings) -> None:
    with pytest.raises(DataError) as caught:
        load(config(path, **settings))
    assert expected in str(caught.value)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    fails(tmp_path / "*.csv", "*.csv: no file matches this pattern")
    first = write_csv(tmp_path / "log" / "part-0.csv", ROWS)
    other = tmp_path / "log" / "part-1.csv"
    other.write_text("user_id,item_id,timestamp,price\na,1,2,3\n")
    fails(
        tmp_path / "log",
        f"{other}: has the columns user_id, item_id, timestamp, price, but {first} has user_id, item_id, "
        "timestamp; parts of one set must have the same columns",
    )
    other.unlink()
    parquet.write_table(table(ROWS), tmp_path / "log" / "part-0.parquet")
    kinds = "csv files (part-0.csv) and parquet files (part-0.parquet)"
    fails(tmp_path / "log", f"log: contains {kinds}; set data.format to the one to read")
    assert load(config(tmp_path / "log", format="csv")).n_events == len(ROWS)
    fails(tmp_path / "log" / "part-0.*", "part-0.parquet: is parquet, but")
    for name in ("ml-1m.inter", "ml-10m.inter"):  # two sets, whose names differ in their size
        (tmp_path / "sets").mkdir(exist_ok=True)
        (tmp_path / "sets" / name).write_text((HEADER + "a,1,2\n").replace(",", "\t"))
    fails(tmp_path / "sets", "contains ml-1m.inter, ml-10m.inter; give the path of one, or a pattern such as")
    numbers = write_csv(tmp_path / "n.csv", ROWS)
    dates = tmp_path / "n.parquet"
    stamps = table(ROWS)["timestamp"].cast(pa.timestamp("s"))
    parquet.write_table(table(ROWS).set_column(2, "timestamp", stamps), dates)
    parquet.write_table(table(ROWS), tmp_path / "m.parquet")
    fails([str(dates), str(tmp_path / "m.parquet")], "m.parquet: times are plain numbers, but those of")
    assert [file.name for file in find_files(config(numbers))] == ["n.csv"]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.zip", "x.feather"])
@pytest.mark.parametrize("content", ["plain", "gzip", "zip", "gzip in zip"])
def test_compression_is_known_by_content(tmp_path: Path, whole: tuple, name: str, content: str) -> None:
    data = write_csv(tmp_path / "plain.csv", ROWS).read_bytes()
    packed = gzip.compress(data) if "gzip" in content else data
    if "zip" in content.split():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("inside.csv", packed)
    elif name == "x.zip":
        return
    else:
        (tmp_path / name).write_bytes(packed)
    assert contents(load(config(tmp_path / name, format="csv"))) == whole


def test_paths_on_the_command_line_and_in_files(tmp_path: Path) -> None:
    def run(*words: str) -> RunConfig:
        return read_run(list(words), CONFIGS)

    assert run("--data.path", "a.csv").data.path == "a.csv"
    assert run("--data.path", "a.csv", "b.csv", "--train.epochs", "3").data.path == ["a.csv", "b.csv"]
    assert run(*to_argv({"data.path": ["a b.csv", "c.csv"]})).data.paths == ["a b.csv", "c.csv"]
    (tmp_path / "x.yaml").write_text("data:\n  path: [a.csv, b.csv]\n")
    made = run("--config", str(tmp_path / "x.yaml"))
    assert made.data.paths == ["a.csv", "b.csv"]
    (tmp_path / "again.yaml").write_text(made.to_yaml())
    assert run("--config", str(tmp_path / "again.yaml")) == made
    assert with_absolute_path(made.data).paths == [str(Path(name).resolve()) for name in ("a.csv", "b.csv")]
    assert stem_of(["logs/2020-01.csv", "x"], "p") == "2020-01-p"
    assert stem_of("/data/logs/*.csv", "p") == "logs-p"

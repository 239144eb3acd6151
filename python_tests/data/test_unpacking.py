"""Compressed files are unpacked within a limit, and refused before the memory fills."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgrela.data import DataConfig, Interactions, load, load_table
from recgrela.data.formats.unpacking import CHUNK, Limit, Within
from recgrela.data.item_file import read_item_file
from recgrela.inference.lists import read_text
from recgrela.system.errors import DataError

HEADER = b"user_id,item_id,timestamp\n"
MIB = 1 << 20
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def read(path: Path, gigabytes: float | None = None) -> Interactions:
    config = DataConfig(path=str(path), max_unpacked_gb=gigabytes, min_user_events=0, min_item_events=0)
    return load(config)


@contextmanager
def little_memory(limit: int = 6 * MIB) -> Iterator[None]:
    """Asserts that less memory is allocated."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def zip_file(path: Path, content: bytes, method: int, name: str = "x.csv") -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_zip_methods(tmp_path: Path, method: str) -> None:
    lines = b"".join(b"u%d,i%d,%d\n" % (n % 7, n % 11, n) for n in range(20_000))
    data = read(zip_file(tmp_path / "x.zip", HEADER + lines, METHODS[method]))
    (tmp_path / "x.csv").write_bytes(HEADER + lines)
    assert data.sha256 == read(tmp_path / "x.csv").sha256
    assert data.n_events == 20_000
    assert (
        read(zip_file(tmp_path / "gz.zip", gzip.compress(HEADER + lines), METHODS[method], "x.csv.gz")).sha256
        == data.sha256
    )
    empty = zip_file(tmp_path / "empty.zip", b"", METHODS[method])
    with pytest.raises(DataError, match=r"empty.zip:x.csv: empty file$"):
        read(empty)


@pytest.mark.parametrize("method", [*METHODS, "gzip", "gzip in zip"])
def test_a_bomb_is_refused(tmp_path: Path, method: str) -> None:
    content = HEADER + bytes(8 * MIB)
    if method == "gzip":
        path, label = tmp_path / "x.csv.gz", "x.csv.gz"
        path.write_bytes(gzip.compress(content))
    elif method == "gzip in zip":
        path, label = tmp_path / "x.zip", "x.zip:x.csv.gz"
        zip_file(path, gzip.compress(content), zipfile.ZIP_DEFLATED, "x.csv.gz")
    else:
        path, label = tmp_path / "x.zip", "x.zip:x.csv"
        zip_file(path, content, METHODS[method])
    with pytest.raises(DataError) as caught, little_memory():
        read(path, gigabytes=0.002)
    text = ": unpacks to more than 0.002 GB, the limit data.max_unpacked_gb; raise it if the file is right"
    assert str(caught.value) == f"{tmp_path / label}{text}"


@pytest.mark.parametrize("method", ["deflated", "bzip2", "lzma"])
def test_a_zip_that_records_a_small_size(tmp_path: Path, method: str) -> None:
    """The compressed data is read no further than the recorded size, a bounded number of bytes at a time."""
    path = zip_file(tmp_path / "x.zip", HEADER + bytes(12 * MIB), METHODS[method])
    content = path.read_bytes()
    real = (len(HEADER) + 12 * MIB).to_bytes(4, "little")
    assert content.count(real) == 2
    path.write_bytes(content.replace(real, (1000).to_bytes(4, "little")))
    with pytest.raises(DataError, match="Bad CRC-32"), little_memory():
        read(path)


def test_many_empty_gzip_members_in_a_zip(tmp_path: Path) -> None:
    """They unpack to nothing, but would be read for ever."""
    path = zip_file(tmp_path / "x.zip", gzip.compress(b"") * 100_000, zipfile.ZIP_DEFLATED, "x.csv.gz")
    with pytest.raises(DataError, match=r"x.csv.gz: unpacks to more than 0.001 GB"):
        read(path, gigabytes=0.001)


def test_a_stream_without_end() -> None:
    class Endless:
        given = 0

        def read(self, size: int) -> bytes:
            self.given += size
            return bytes(size)

    stream = Endless()
    with pytest.raises(DataError, match=r"^x: unpacks to more than 0.00314 GB, a limit; do less$"):
        Within(stream, Limit(3 * MIB - 1000, "a limit", "do less"), "x").read_all()
    assert stream.given == 3 * CHUNK
    assert Within(io.BytesIO(b"abc"), Limit(3, "", ""), "x").read_all().to_pybytes() == b"abc"


def test_files_without_end_and_item_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting, the limit is half of the available memory."""
    monkeypatch.setattr("recgrela.data.formats.unpacking.available_memory", lambda device: 8 * MIB)
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(b"item_id\n" + bytes(8 * MIB)))
    half = "unpacks to more than 0.00419 GB, half of the memory that is available; "
    with pytest.raises(DataError, match=f"items.csv.gz: {half}unpack the file"):
        read_item_file(str(tmp_path / "items.csv.gz"))
    with pytest.raises(DataError, match=r"--histories /dev/zero: has more .*; use a smaller file$"):
        read_text("/dev/zero", "--histories")
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(HEADER + bytes(8 * MIB)))
    with pytest.raises(DataError, match=f"x.csv.gz: {half}set data.max_unpacked_gb to allow more$"):
        read(tmp_path / "x.csv.gz")


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def repeated(text: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))


def test_a_long_text_repeated_in_parquet(tmp_path: Path) -> None:
    """100 KB repeated 2,000 times: 200 MB as an array of texts, little as a dictionary."""
    rows, text = 2_000, "a title " * 12_500 + "and the end"
    ids = [str(row) for row in range(rows)]
    events = parquet(tmp_path / "x.parquet", user_id=repeated(text, rows), item_id=ids, timestamp=range(rows))
    items = parquet(tmp_path / "items.parquet", item_id=ids, title=repeated(text, rows))
    before = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counted)
    try:
        data, file = read(events), read_item_file(str(items))
    finally:
        pa.set_memory_pool(before)
    assert data.user_ids == [text] and data.n_events == rows
    assert file.titles[0] is file.titles[-1]
    assert 0 < counted.max_memory() < 8 * MIB


def test_parquet_that_decodes_to_too_much(tmp_path: Path) -> None:
    rows = 100_000
    path = parquet(tmp_path / "x.parquet", user_id=["u"] * rows, item_id=["i"] * rows, timestamp=[1] * rows)
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"x.parquet: unpacks to more than 0.002 GB, the limit data.max_un"):
        read(path, gigabytes=0.002)
    assert read(path, gigabytes=0.003).n_events == rows


def test_dictionaries_with_equal_and_unused_values() -> None:
    users = pa.chunked_array(
        [
            pa.DictionaryArray.from_arrays(
                pa.array([3, 1, 0], pa.int8()), pa.array(["a", "b", "unused", "a"])
            ),
            pa.DictionaryArray.from_arrays(pa.array([0, 1, 1], pa.int8()), pa.array(["b", "c"])),
        ]
    )
    columns = {"item_id": ["x"] * 6, "timestamp": range(6)}
    config = DataConfig(min_user_events=0, min_item_events=0)
    found = load_table(pa.table({"user_id": users, **columns}), config)
    plain = load_table(pa.table({"user_id": ["a", "b", "a", "b", "c", "c"], **columns}), config)
    assert (found.user_ids, found.sha256) == (plain.user_ids, plain.sha256)
    assert found.offsets.tolist() == plain.offsets.tolist() and not found.dropped_users


def test_damaged_compressed_data_names_the_file(tmp_path: Path) -> None:
    for method in ("deflated", "bzip2", "lzma"):
        content = bytearray(
            zip_file(tmp_path / "x.zip", HEADER + b"a,1,2\n" * 1000, METHODS[method]).read_bytes()
        )
        for place in range(35, 75, 3):
            damaged = bytes(content[:place]) + bytes([content[place] ^ 0xFF]) + bytes(content[place + 1 :])
            (tmp_path / "x.zip").write_bytes(damaged)
            try:
                read(tmp_path / "x.zip")
            except DataError as error:
                assert str(error).startswith(f"{tmp_path}/x.zip")

"""Files of items and their errors."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from recgrela.data import item_file
from recgrela.data.item_file import ItemFile, read_item_file
from recgrela.system.errors import DataError

TOKENS = ["007", "b", "c"]
TITLES = ["A, the  first", None, 'The "third"']
VECTORS = np.array([[1, 2.5], [0, -1], [3, 4]], dtype=np.float32)


def write_csv(path: Path, vectors: bool) -> None:
    lines = ["item_id,title,vector" if vectors else "item_id,title,year"]
    for token, title, vector in zip(TOKENS, TITLES, VECTORS.tolist(), strict=True):
        quoted = "" if title is None else '"' + title.replace('"', '""') + '"'
        lines.append(f'{token},{quoted},"{vector if vectors else 1999}"')
    path.write_text("\n".join(lines) + "\n")


def write_jsonl(path: Path, vectors: bool) -> None:
    rows = zip(TOKENS, TITLES, VECTORS.tolist(), strict=True)
    content = [{"item_id": i, "title": t} | ({"vector": v} if vectors else {}) for i, t, v in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


def write_parquet(path: Path, vectors: bool) -> None:
    columns: dict[str, object] = {"title": TITLES, "item_id": TOKENS}
    if vectors:
        columns["vector"] = list(VECTORS)
    pq.write_table(pa.table(columns), path)


WRITERS = {".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}


def check(found: ItemFile, vectors: bool) -> None:
    assert found.tokens == TOKENS
    assert found.titles == ["A, the first", None, 'The "third"']
    if vectors:
        assert found.vectors is not None and found.vectors.dtype == np.float32
        assert np.array_equal(found.vectors, VECTORS)
    else:
        assert found.vectors is None


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("suffix", WRITERS)
def test_formats(tmp_path: Path, suffix: str, vectors: bool) -> None:
    path = tmp_path / f"items{suffix}"
    WRITERS[suffix](path, vectors)
    found = read_item_file(str(path))
    check(found, vectors)
    zipped = tmp_path / f"zipped{suffix}.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    again = read_item_file(str(zipped))
    check(again, vectors)
    assert again.sha256 == found.sha256


def test_vectors_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "items.v2.csv"
    write_csv(path, vectors=False)
    plain = read_item_file(str(path))
    np.save(tmp_path / "items.v2.npy", VECTORS.astype(np.float64))
    check(found := read_item_file(str(path)), vectors=True)
    assert found.sha256 != plain.sha256
    (tmp_path / "items.v2.npy").unlink()
    save_file({"any": VECTORS.astype(np.float16)}, tmp_path / "items.v2.safetensors")
    check(read_item_file(str(path)), vectors=True)
    write_csv(path, vectors=True)
    with pytest.raises(DataError, match=r"items.v2.csv: has vectors, and so has .*items.v2.safetensors"):
        read_item_file(str(path))


def test_string_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars exports such columns; a Parquet file cannot hold dictionaries of them."""
    path = tmp_path / "items.parquet"
    columns = {"item_id": TOKENS, "title": TITLES}
    views = pa.table({name: pa.array(values, pa.string_view()) for name, values in columns.items()})
    pq.write_table(views, path)
    assert pq.read_table(path).schema.types == [pa.string_view()] * 2
    check(read_item_file(str(path)), vectors=False)
    for kind in (pa.string(), pa.string_view()):
        encoded = [pa.array(values).dictionary_encode() for values in columns.values()]
        table = pa.table([array.cast(pa.dictionary(pa.int32(), kind)) for array in encoded], list(columns))
        monkeypatch.setitem(item_file._READERS, ".parquet", lambda data, label, limit, table=table: table)
        check(read_item_file(str(path)), vectors=False)


def test_numbers_are_ids_too(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [5, 30]}), path)
    found = read_item_file(str(path))
    assert (found.tokens, found.titles) == (["5", "30"], [None, None])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("items.csv", "item,title\n1,a\n", "no column 'item_id' among 'item', 'title'; did you mean 'item'?"),
        ("items.csv", "item_id,title,title\n1,a,b\n", "column 'title' occurs 2 times"),
        ("items.csv", "item_id\n", "the file has no items"),
        ("items.csv", "", "cannot be read as .csv (Empty CSV file)"),
        ("items.csv", "item_id,title\n1,a\n,b\n", "row 2, column 'item_id': empty id"),
        ("items.csv", "item_id,title\n ,b\n", "row 1, column 'item_id': empty id"),
        ("items.csv", "item_id,title\n1,a\n2,b\n1,c\n", "row 3: item '1' is in row 1 too"),
        (
            "items.csv",
            'item_id,vector\n1,"[1, 2]"\n2,"[1]"\n',
            "row 2, column 'vector': expected a list of",
        ),
        ("items.csv", "item_id,vector\n1,x\n", "row 1, column 'vector': 'x' is not a list of numbers"),
        ("items.csv", "item_id,vector\n1,3\n", "row 1, column 'vector': expected a list of numbers"),
        (
            "items.jsonl",
            '{"item_id": 1.5}\n',
            "row 1, column 'item_id': 1.5 is not a whole number",
        ),
        ("items.jsonl", '{"item_id": 1, "title": 3}\n', "column 'title': titles must be strings, not int64"),
        ("items.jsonl", '{"item_id": null}\n{"item_id": "a"}\n', "row 1, column 'item_id': empty id"),
        ("items.jsonl", '{"item_id": 1,\n', "line 1: not JSON: Expecting property name"),
        ("items.parquet", "nonsense", "not a Parquet file, or damaged (Parquet magic bytes"),
        ("items.csv", 'item_id,vector\n1,"' + "[" * 9999 + '"\n', "row 1, column 'vector': '[[["),
        (
            "items.csv",
            f'item_id,vector\n1,"[{"9" * 400}]"\n',
            "(302 more characters) is not a list of numbers",
        ),
        ("items.csv", 'item_id,vector\n1,"[1e300]"\n', "row 1, column 'vector': a number is not finite"),
        ("items.csv", "\udce9item_id\n1\n", "cannot be read as .csv ("),
        (
            "items.jsonl",
            '{"item_id": "a", "vector": ' + "[" * 99_999 + "\n",
            "line 1: not JSON: maximum recursion",
        ),
        ("items.jsonl", "", "items.jsonl: the file has no items"),
        ("items.jsonl", "[1]\n", "line 1: [1] is not an object"),
        ("items.jsonl", '{"item_id": 1}\n{"item_id": "a"}\n', "column 'item_id': Could not convert"),
        ("items.jsonl", f'{{"item_id": {2**64}}}\n', "column 'item_id': "),
        ("items.txt", "1\n", "expected a file of items: .csv, .parquet, .jsonl"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_item_file(str(path))
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "items.csv", vectors=False)
    with pytest.raises(DataError, match=r"itens.csv: no such file or folder; did you mean 'items.csv'\?"):
        read_item_file(str(tmp_path / "itens.csv"))
    with pytest.raises(DataError, match="expected a file of items"):
        read_item_file(str(tmp_path))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (VECTORS[:2], r"float32 \[2, 2\]; expected numbers \[3, D\]"),
        (VECTORS[:, 0], r"float32 \[3\]; expected numbers"),
        (np.array([["a"], ["b"], ["c"]]), "expected numbers"),
        (np.array([[1.0], [np.nan], [1.0]]), "row 2: a number is not finite"),
        (np.array([[1], [None], [1]], dtype=object), "not an array, or damaged: .*objects"),
    ],
)
def test_wrong_matrices(tmp_path: Path, array: np.ndarray, message: str) -> None:
    write_csv(tmp_path / "items.csv", vectors=False)
    np.save(tmp_path / "items.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=f"items.npy.*{message}"):
        read_item_file(str(tmp_path / "items.csv"))


def test_an_array_larger_than_its_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "items.csv", vectors=False)
    np.save(tmp_path / "items.npy", VECTORS)
    content = (tmp_path / "items.npy").read_bytes()
    for shape, message in (
        (b"(3, 999999999999), }", "damaged: mmap"),
        (b"(3, 2(, }" + b" " * 11, "damaged: "),
    ):
        (tmp_path / "items.npy").write_bytes(content.replace(b"(3, 2), }" + b" " * 11, shape))
        with pytest.raises(DataError, match=f"items.npy: not an array, or {message}"):
            read_item_file(str(tmp_path / "items.csv"))


def test_an_archive_of_arrays(tmp_path: Path) -> None:
    write_csv(tmp_path / "items.csv", vectors=False)
    np.savez(tmp_path / "items.npz", VECTORS)
    (tmp_path / "items.npz").rename(tmp_path / "items.npy")
    with pytest.raises(DataError, match=r"items.npy: an archive of arrays \(.npz\)"):
        read_item_file(str(tmp_path / "items.csv"))


def test_vectors_in_bfloat16(tmp_path: Path) -> None:
    write_csv(tmp_path / "items.csv", vectors=False)
    save_tensors({"v": torch.from_numpy(VECTORS).bfloat16()}, tmp_path / "items.safetensors")
    check(read_item_file(str(tmp_path / "items.csv")), vectors=True)


def test_several_tensors(tmp_path: Path) -> None:
    write_csv(tmp_path / "items.csv", vectors=False)
    save_file({"a": VECTORS, "b": VECTORS}, tmp_path / "items.safetensors")
    with pytest.raises(DataError, match="2 tensors; expected one"):
        read_item_file(str(tmp_path / "items.csv"))

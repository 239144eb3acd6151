"""Damaged files of every kind that recgrela reads: a result or a one-line error, never anything else."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from python_tests.fuzz.conftest import Fuzz
from python_tests.fuzz.mutations import damaged, edit_lists
from python_tests.support.sandbox import Sandbox
from recgrela.models import CONFIGS
from recgrela.settings.run import read_run

TARGETS = "python_tests.fuzz.targets"
EVENTS = [(f"u{n % 5}", f"i{n % 7}", 978_300_760 + 37 * n) for n in range(24)]
CSV = "user_id,item_id,timestamp,note\n" + "".join(f'{u},{i},{t},"a, ""b"""\n' for u, i, t in EVENTS)
ITEMS = {
    "item_id": ["a", "b", "c"],
    "title": ["One", None, "Trois é"],
    "vector": [[1.0, 2.5], [0.0, -1.0], [3.0, 4.0]],
}


def zipped(method: int) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        archive.writestr("data/x.csv", CSV)
        archive.writestr("data/README", "text")
    return sink.getvalue()


def parquet(columns: dict[str, list], **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def npy() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array(ITEMS["vector"]))
    return sink.getvalue()


def text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


USERS, ITEM_IDS, TIMES = zip(*EVENTS, strict=True)
COLUMNS = {"user_id": USERS, "item_id": ITEM_IDS, "timestamp": TIMES}
FILES = {
    "x.inter": (
        "events",
        text(["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, e)) for e in EVENTS)]),
    ),
    "ratings.dat": ("events", text([f"{n % 5}::{n % 7}::4::{9783 + n}" for n in range(24)])),
    "u.data": ("events", text([f"{n % 5}\t{n % 7}\t4\t{9783 + n}" for n in range(24)])),
    "ratings.csv": (
        "events",
        text(["userId,movieId,rating,timestamp", *(f"{n % 5},{n % 7},4.5,{9783 + n}" for n in range(24))]),
    ),
    "x.csv": ("events", CSV.encode()),
    "dates.csv": (
        "events",
        text(["user_id;item_id;timestamp", *(f"{n % 5};{n % 7};2020-09-13 13:50:{n:02}" for n in range(24))]),
    ),
    "spaces.txt": (
        "events",
        text(["user_id item_id  timestamp", *(f"{n % 5}  {n % 7} {n}.5" for n in range(24))]),
    ),
    "x.jsonl": ("events", text([json.dumps(dict(zip(COLUMNS, event, strict=True))) for event in EVENTS])),
    "sequences": ("sequences", text([f"u{n % 5} {n % 7}  {n % 3}" for n in range(24)])),
    "x.csv.gz": ("events", gzip.compress(CSV.encode(), mtime=0)),
    "x.parquet": ("events", parquet(COLUMNS)),
    "plain.parquet": (
        "events",
        parquet(COLUMNS, compression="none", use_dictionary=False, row_group_size=10),
    ),
    "stored.zip": ("events", zipped(zipfile.ZIP_STORED)),
    "deflated.zip": ("events", zipped(zipfile.ZIP_DEFLATED)),
    "bzip2.zip": ("events", zipped(zipfile.ZIP_BZIP2)),
    "lzma.zip": ("events", zipped(zipfile.ZIP_LZMA)),
    "items.csv": (
        "items",
        text(["item_id,title,vector", 'a,One,"[1, 2.5]"', 'b,,"[0, -1]"', 'c,"Trois, é","[3, 4e0]"']),
    ),
    "items.jsonl": (
        "items",
        text([json.dumps(dict(zip(ITEMS, row, strict=True))) for row in zip(*ITEMS.values(), strict=True)]),
    ),
    "items.parquet": ("items", parquet(ITEMS)),
    "vectors.npy": ("vectors", npy()),
    "vectors.safetensors": ("vectors", save({"v": torch.tensor(ITEMS["vector"], dtype=torch.bfloat16)})),
    "config.yaml": ("settings", read_run([], CONFIGS).to_yaml().encode()),
    "histories.jsonl": (
        "histories",
        text(['{"user": "u", "items": ["a", 5, "c"]}', '["a", "b"]', "", "[1]"]),
    ),
    "users.txt": ("lines", text(["u1", "u2 ", "", "ü3"])),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str, tmp_path: Path, sandbox: Sandbox, fuzz: Fuzz) -> None:
    kind, content = FILES[name]
    (tmp_path / "vectors.csv").write_text("item_id\na\nb\nc\n")
    path = str(tmp_path / name)

    def read(changes: list) -> str:
        return sandbox.call(f"{TARGETS}:read_file", kind, path, damaged(content, changes))

    assert read([]) == "result"
    fuzz(read, edit_lists, examples=60)

"""Archives that cannot be read, and files that the system refuses."""

from __future__ import annotations

import errno
import gzip
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from python_tests.data.test_bad_input import HEADER, fails, known_files
from recgrela.data import DataConfig, load
from recgrela.system.errors import DataError


def zip_with(path: Path, edits: list[tuple[bytes, int, bytes]], name: str = "x.csv") -> Path:
    """A zip, with bytes at some offset from the signatures of its local header, directory or end replaced."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "user_id,item_id,timestamp\na,1,2\n")
    content = bytearray(path.read_bytes())
    for signature, offset, value in edits:
        start = content.index(b"PK" + signature) + offset
        content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


LOCAL, DIRECTORY = b"\x03\x04", b"\x01\x02"
ZIPS = {
    "later version": (
        [(LOCAL, 4, b"\xff"), (DIRECTORY, 6, b"\xff")],
        ": cannot be unpacked (zip file version 25.5); unpack it with another program",
    ),
    "unknown compression": (
        [(LOCAL, 8, b"\x63"), (DIRECTORY, 10, b"\x63")],
        ":x.csv: cannot be unpacked (That compression method is not supported); unpack it with another "
        "program",
    ),
    "password": (
        [(LOCAL, 6, b"\x01"), (DIRECTORY, 8, b"\x01")],
        ":x.csv: cannot be unpacked (File 'x.csv' is encrypted, password required for extraction); unpack it "
        "with another program",
    ),
    "several volumes": (
        [(DIRECTORY, 34, b"\x01")],
        ":x.csv: cannot be unpacked (the archive consists of several files); unpack it with another program",
    ),
    "name that is not UTF-8": (
        [(DIRECTORY, 9, b"\x08"), (DIRECTORY, 46, b"\xff")],
        ": damaged or truncated archive ('utf-8' codec can't decode byte 0xff in position 0: invalid start "
        "byte)",
    ),
    "empty name": (
        [(LOCAL, 30, b"\0" * 5), (DIRECTORY, 46, b"\0" * 5)],
        f": contains no file of a known format; {known_files()}; or set data.format",
    ),
}


@pytest.mark.parametrize("case", ZIPS)
def test_zips_that_cannot_be_read(tmp_path, case):
    edits, expected = ZIPS[case]
    fails(zip_with(tmp_path / "x.zip", edits), expected)


def test_a_name_that_leads_out_of_the_zip_is_only_a_name(tmp_path):
    path = zip_with(tmp_path / "x.zip", [], "../../x.csv")
    data = load(DataConfig(path=str(path), min_user_events=0, min_item_events=0))
    assert data.description["source"] == f"{path}:../../x.csv"
    assert not (tmp_path.parent.parent / "x.csv").exists()


def test_zip_with_several_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.csv", "")
        archive.writestr("b.csv", "")
    fails(tmp_path / "x.zip", ": contains a.csv, b.csv; extract it and give the path of one")


def test_paths_that_the_system_refuses(tmp_path):
    fails(tmp_path / ("x" * 300), ": cannot be read (File name too long)")
    fails(f"{tmp_path}/a\0b", ": cannot be read (embedded null byte)")
    fails("~nosuchuser/x.csv", ": cannot be read (Could not determine home directory.)")
    (tmp_path / "file.csv").write_text("")
    fails(tmp_path / "file.csv" / "x.csv", ": no such file or folder")
    os.mkfifo(tmp_path / "pipe.csv")
    fails(tmp_path / "pipe.csv", ": neither a file nor a folder")


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_args, **_settings):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\na,1,2\n")
    (tmp_path / "x.zip").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        fails(tmp_path, ": cannot be read (Permission denied)")
        fails(tmp_path / "y.csv", ": no such file or folder")
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", refuse)
        fails(tmp_path / "x.zip", ": cannot be read (Permission denied)")
    with monkeypatch.context() as patch:
        patch.setattr(pa, "memory_map", refuse)
        fails(tmp_path / "x.csv", ": cannot be read (Permission denied)")
    with monkeypatch.context() as patch:
        stat = Path.stat
        patch.setattr(Path, "stat", lambda p, **more: refuse() if p.name == "x.csv" else stat(p, **more))
        with pytest.raises(DataError, match=r"x\.csv: cannot be read \(Permission denied\)$"):
            load(DataConfig(path=str(tmp_path / "x.csv")))


def test_damaged_archives(tmp_path):
    whole = gzip.compress((HEADER + "a\t1\t5\t6\n" * 1000).encode())
    expected = (
        ": damaged or truncated archive (Compressed file ended before the end-of-stream marker was reached)"
    )
    (tmp_path / "cut.inter.gz").write_bytes(whole[:-20])
    fails(tmp_path / "cut.inter.gz", expected)
    (tmp_path / "x.zip").write_text("no zip")
    fails(tmp_path / "x.zip", ": damaged or truncated archive (File is not a zip file)")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("ratings.dat", "1::2::3::4\n" * 9)
    content = (tmp_path / "bad.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(content.replace(b"1::2", b"1::9", 1))
    damage = "damaged or truncated archive (Bad CRC-32 for file 'ratings.dat')"
    fails(tmp_path / "bad.zip", f":ratings.dat: {damage}")

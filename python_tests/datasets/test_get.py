"""`python -m recgrela.data get`, from a server on this machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from python_tests.support.file_server import FileServer, serve_files
from python_tests.support.project import Page
from recgrela.data.__main__ import main
from recgrela.datasets import public
from recgrela.datasets.get import fetch
from recgrela.datasets.public import MANUAL, PUBLIC, PublicSet
from recgrela.system.download import Checksum

CSV = "user_id,parent_asin,rating,timestamp\n" + "".join(
    f"u{user},i{(user + step) % 9},5.0,{10**12 + 1000 * step}\n" for user in range(9) for step in range(9)
)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files() as started:
        started.files["/set.csv"] = CSV.encode()
        yield started


@pytest.fixture
def known(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> PublicSet:
    """A set of the catalogue, at the server of this machine."""
    digest = hashlib.md5(CSV.encode(), usedforsecurity=False).hexdigest()
    found = replace(
        PUBLIC["amazon-2023-books"], url=server.url("/set.csv"), checksum=Checksum("md5", digest), name="set"
    )
    monkeypatch.setitem(public.PUBLIC, "set", found)
    return found


def test_get_prints_terms_first_and_stats_reads_the_file(
    known: PublicSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["get", "set", "--to", str(folder)]) == 0
    text = capsys.readouterr().out
    places = [
        text.index(word)
        for word in (known.terms, known.cite, known.url, "set.csv: ", "sha256", "--data.path")
    ]
    assert places == sorted(places) and hashlib.sha256(CSV.encode()).hexdigest() in text
    assert (folder / "set.csv").read_text() == CSV
    words = text.rstrip().rpartition("--data.path ")[2].split()
    assert main(["stats", *words, "--order_users", "0"]) == 0


def test_a_file_that_is_there_is_checked(
    known: PublicSet, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["get", "set", "--to", str(tmp_path)]) == main(["get", "SET", "--to", str(tmp_path)]) == 0
    assert "is there already" in capsys.readouterr().out and len(server.requests) == 1
    (tmp_path / "set.csv").write_text("another")
    assert main(["get", "set", "--to", str(tmp_path)]) == 2
    assert re.search(r"exists, but its md5 is \w+, not \w+; remove it", capsys.readouterr().err)
    assert (tmp_path / "set.csv").read_text() == "another"


def test_a_set_without_a_checksum(known: PublicSet, tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=1000)
    fetch(replace(known, checksum=None, unpack="part/*.csv"), tmp_path, 10, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "no checksum: note the sha256" in text and f"tar -xzf {tmp_path / 'set.csv'} -C {tmp_path}\n" in text
    )
    assert f"--data.path '{tmp_path}/part/*.csv' {known.settings}\n" in text


def test_a_terminal_has_a_bar(known: PublicSet, tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=100, force_terminal=True)
    assert fetch(known, tmp_path, 10, console).read_text() == CSV
    assert "100%" in console.file.getvalue() or "kB" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_changed_file_is_an_error(
    known: PublicSet, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/set.csv"] = b"<html>moved</html>"
    assert main(["get", "set", "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "damaged, or changed by its publisher" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_network(
    known: PublicSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(public.PUBLIC, "set", replace(known, url="https://nowhere.invalid/set.csv"))
    assert main(["get", "set", "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot reach nowhere.invalid") and error.count("\n") == 1


def test_a_folder_that_cannot_be_made(
    known: PublicSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["get", "set", "--to", str(tmp_path / "file" / "below")]) == 2
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", MANUAL)
def test_sets_that_are_not_downloaded(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", name, "--to", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert MANUAL[name].page in error and MANUAL[name].files in error and not (tmp_path / "new").exists()


def test_unknown_names_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "ml-1n"]) == 2
    assert "unknown data set ml-1n; did you mean 'ml-1m'?" in capsys.readouterr().err
    assert main(["get"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*PUBLIC, *MANUAL])


def test_the_settings_are_those_of_the_page() -> None:
    """The tests of the page read files in these layouts."""
    page = Page("docs/data.md").text
    assert [known.name for known in [*PUBLIC.values(), *MANUAL.values()] if known.settings not in page] == []


def test_the_catalogue() -> None:
    assert not PUBLIC.keys() & MANUAL.keys()
    for known in PUBLIC.values():
        assert known.url.startswith("https://") and known.page.startswith("https://") and known.file
        if known.checksum is not None:
            length = {"md5": 32, "sha256": 64}[known.checksum.algorithm]
            assert re.fullmatch(rf"[0-9a-f]{{{length}}}", known.checksum.digest)

"""Downloads from a real server: complete, resumed, broken, changed, and onto a full disk."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from python_tests.support.file_server import FileServer, serve_files
from recgrela.system import download as module
from recgrela.system.download import Checksum, download, file_digest
from recgrela.system.errors import DiskFull, RunError

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files() as started:
        started.files["/a.bin"] = CONTENT
        yield started


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ranges(server: FileServer) -> list[str | None]:
    return [wanted for _, wanted, _ in server.requests]


def test_a_file_and_its_progress(server: FileServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256, lambda *state: seen.append(state))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and names(tmp_path) == ["a.bin"]
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen) and file_digest(tmp_path / "a.bin") == SHA256.digest


def test_lost_connections_are_made_again(server: FileServer, tmp_path: Path) -> None:
    server.breaks = [1_000_000, 0, 700_000, 1]
    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    starts = (1_000_000, 1_000_000, 1_700_000, 1_700_001)
    assert ranges(server) == [None, *(f"bytes={start}-" for start in starts)]


def test_a_later_call_resumes(server: FileServer, tmp_path: Path) -> None:
    server.breaks = [1_000_000, 0, 0, 0]
    with pytest.raises(
        RunError, match=r"lost after 1,000,000 bytes \(.* of 3,000,000.*; the same command resumes"
    ):
        download(server.url("/a.bin"), tmp_path / "a.bin", SHA256)
    assert names(tmp_path) == [".a.bin.part", ".a.bin.part.json"]
    server.requests.clear()
    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256)
    assert ranges(server) == ["bytes=1000000-"] and (tmp_path / "a.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]


def test_a_killed_process_leaves_what_resumes(server: FileServer, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom recgrela.system.download import download\n"
        "def progress(done, size):\n    if done > 1_000_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        "download(sys.argv[1], Path(sys.argv[2]), progress=progress)\n"
    )
    command = [sys.executable, "-c", code, server.url("/a.bin"), str(tmp_path / "a.bin")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "a.bin").exists()
    kept = (tmp_path / ".a.bin.part").stat().st_size
    assert kept > 0
    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256)
    assert ranges(server)[-1] == f"bytes={kept}-" and (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["content", "url", "no record", "no ranges", "no etag", "shorter"])
def test_another_content_is_not_appended(server: FileServer, tmp_path: Path, change: str) -> None:
    server.has_etag = change != "no etag"
    server.breaks = [1_000_000, 0, 0, 0]
    if change == "no etag":  # then every connection begins again
        server.breaks = [1_000_000] * 4
    with pytest.raises(RunError):
        download(server.url("/a.bin"), tmp_path / "a.bin")
    server.breaks.clear()
    new = {"content": CONTENT[::-1], "shorter": CONTENT[:10]}.get(change, CONTENT)
    server.files["/a.bin"] = server.files["/b.bin"] = new
    server.has_ranges = change != "no ranges"
    if change == "no record":
        (tmp_path / ".a.bin.part.json").write_text("{")
    download(server.url("/b.bin" if change == "url" else "/a.bin"), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == new and names(tmp_path) == ["a.bin"]


def test_a_complete_part_is_not_damaged(server: FileServer, tmp_path: Path) -> None:
    server.breaks = [len(CONTENT) - 1, 0, 0, 0]
    with pytest.raises(RunError):
        download(server.url("/a.bin"), tmp_path / "a.bin")
    with (tmp_path / ".a.bin.part").open("ab") as file:
        file.write(CONTENT[-1:])
    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_without_a_length_the_checksum_decides(server: FileServer, tmp_path: Path) -> None:
    server.has_length = False
    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256)
    server.breaks = [100]
    with pytest.raises(RunError, match=r"sha256 is .* not"):
        download(server.url("/a.bin"), tmp_path / "b.bin", SHA256)
    assert names(tmp_path) == ["a.bin"]


def test_a_wrong_checksum_removes_the_download(server: FileServer, tmp_path: Path) -> None:
    wrong = Checksum("md5", "0" * 32)
    (tmp_path / "a.bin").write_text("old")
    with pytest.raises(RunError, match=r"damaged, or changed by its publisher: its md5 is \w{32}, not 0{32}"):
        download(server.url("/a.bin"), tmp_path / "a.bin", wrong)
    assert (tmp_path / "a.bin").read_text() == "old"
    assert names(tmp_path) == ["a.bin"]


def test_server_errors(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"/none: the server refuses it: HTTP status 404"):
        download(server.url("/none"), tmp_path / "a.bin")
    server.statuses = [503, 500]
    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256)
    server.statuses = [503] * 3
    with pytest.raises(RunError, match=r"lost after 0 bytes .HTTP status 503"):
        download(server.url("/a.bin"), tmp_path / "b.bin")
    server.redirects["/moved"] = server.url("/a.bin")
    download(server.url("/moved"), tmp_path / "c.bin", SHA256)


def test_a_silent_server_is_a_lost_connection(server: FileServer, tmp_path: Path) -> None:
    server.stalls = 2
    with pytest.raises(RunError, match=r"lost after 0 bytes .*timed out"):
        download(server.url("/a.bin"), tmp_path / "a.bin", timeout=0.1)


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"cannot reach nowhere\.invalid \(.*\); check the network .* by other means"
    ):
        download("http://nowhere.invalid/a.bin", tmp_path / "a.bin")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening, so that a connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin"
        with pytest.raises(RunError, match=r"cannot reach 127\.0\.0\.1.*refused"):
            download(url, tmp_path / "a.bin")


def test_one_process_at_a_time(server: FileServer, tmp_path: Path) -> None:
    def again(done: int, size: int | None) -> None:
        with pytest.raises(RunError, match="another process is writing this download"):
            download(server.url("/a.bin"), tmp_path / "a.bin")

    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256, again)


def test_a_download_that_another_process_has_just_finished(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renames the file after this process has opened it, and before it has locked it."""
    path, part = tmp_path / "x", tmp_path / ".x.part"
    part.write_bytes(b"all")
    monkeypatch.setattr("fcntl.flock", lambda *args: part.rename(path))
    with pytest.raises(RunError, match="another process has just finished this download"):
        download(server.url("/a.bin"), path)
    assert path.read_bytes() == b"all"


def test_a_full_disk_keeps_the_bytes(server: FileServer, tmp_path: Path) -> None:
    """The limit on the size of files fails as a full disk does, but by another number."""
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit")
    code = (
        "import errno, sys\nfrom pathlib import Path\nfrom recgrela.system import download as module\n"
        "module._FULL = (errno.EFBIG,)\n"
        "try: module.download(sys.argv[1], Path(sys.argv[2]))\n"
        "except module.DiskFull as error: print(error)\n"
    )
    command = ["prlimit", "--fsize=1000000", sys.executable, "-c", code]
    done = subprocess.run(
        [*command, server.url("/a.bin"), str(tmp_path / "a.bin")], capture_output=True, text=True, check=True
    )
    assert "no space left on the disk; 1,000,000 bytes are kept in" in done.stdout
    download(server.url("/a.bin"), tmp_path / "a.bin", SHA256)
    assert ranges(server)[-1] == "bytes=1000000-" and (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_disk_that_is_too_small_is_said_before(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    with pytest.raises(DiskFull, match="2 MB are free, and 3 MB are needed for http"):
        download(server.url("/a.bin"), tmp_path / "a.bin")


def test_a_folder_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*: No such file or directory"):
        download(server.url("/a.bin"), tmp_path / "none" / "a.bin")
    assert os.listdir(tmp_path) == []

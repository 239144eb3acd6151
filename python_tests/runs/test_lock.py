"""The lock of a run folder, and files that killed processes leave."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from python_tests.support.runs import options, run_train
from recgrela.runs import lock
from recgrela.runs.lock import LOCK, owned
from recgrela.runs.saved import load_run
from recgrela.runs.tensor_file import Entry, read_tensors, write_tensors
from recgrela.system import files
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_stream, atomic_write_text

HOLD = """
import sys, time
from pathlib import Path
from recgrela.runs.lock import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def in_child(work: Callable[[], None]) -> None:
    """Runs `work` in a process that is killed when it is done, without any cleanup."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_second_writer_is_told_who_the_first_is(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert run_train("--resume", str(run), "--train.epochs=3") == 2
        err = capsys.readouterr().err
        assert f"{run}: in use by process {holder.pid} on {socket.gethostname()} since 20" in err
        assert err.count("\n") == 1
        load_run(run, None, torch.device("cpu"))  # readers need no lock
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with owned(run):  # the system has released the lock, although its file is still there
        assert str(os.getpid()) in (run / LOCK).read_text()
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"), owned(run):
            pass
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_new_run_holds_the_lock_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recgrela.training import final_test, new_run

    held = []

    def noted(*arguments: object) -> None:
        held.append((tmp_path / "run" / LOCK).is_file())
        real(*arguments)  # type: ignore[arg-type]

    real = new_run.write_items
    monkeypatch.setattr(new_run, "write_items", noted)
    monkeypatch.setattr(
        final_test, "draw_curves", lambda *_: held.append((tmp_path / "run" / LOCK).is_file())
    )
    assert run_train(*options(tmp_path, "run", "--train.max_steps=1")) == 0
    assert held == [True, True] and not (tmp_path / "run" / LOCK).exists()


def test_the_owner_removes_what_killed_processes_left(tmp_path: Path) -> None:
    for name in (".last.safetensors.tmp", ".tmpAb12Cd", "kept.tmp", ".hidden", "last.safetensors"):
        (tmp_path / name).touch()
    with owned(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"kept.tmp", ".hidden", "last.safetensors"}


def test_a_killed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    write_tensors(path, [Entry.of("x", torch.zeros(3))], {})
    before = path.read_bytes()

    def write() -> None:
        with atomic_stream(path) as file:
            file.write(b"x" * 10_000_000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    in_child(write)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_system_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_open_unnamed", lambda folder: None)
    path = tmp_path / "config.yaml"
    atomic_write_text(path, "one")
    assert path.read_text() == "one"

    def fail() -> None:
        with atomic_stream(path) as file:
            file.write(b"two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "one" and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_of_tensors_is_written_as_a_stream(tmp_path: Path) -> None:
    """Tensors come in chunks that exist one at a time; other readers of safetensors read the file."""
    from safetensors.torch import load_file

    path, rows = tmp_path / "x.safetensors", torch.randn(10, 3)
    wanted = {
        "rows": rows,
        "half": torch.randn(5).bfloat16(),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "none": torch.empty(0, 4),
    }
    chunks = (rows[at : at + 3].reshape(-1) for at in range(0, 10, 3))
    entries = [Entry("rows", torch.float32, (10, 3), chunks)]
    entries += [Entry.of(name, tensor) for name, tensor in wanted.items() if name != "rows"]
    checksum = write_tensors(path, entries, {"more": "text"})
    content = read_tensors(path, "file")
    assert (content.metadata, content.checksum) == ({"more": "text"}, checksum)
    for found in (load_file(path), content.tensors):
        assert found is not None and found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    before = path.read_bytes()
    for wrong in (
        [Entry("rows", torch.float32, (10, 3), [rows[:4]])],
        [Entry("rows", torch.float16, (10, 3), [rows])],
        [Entry.of("rows", rows), Entry.of("rows", rows)],
    ):
        with pytest.raises(ValueError, match="rows"):
            write_tensors(path, wrong, {})
    assert path.read_bytes() == before


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with owned(tmp_path):
        assert "cannot be locked on its file system" in capsys.readouterr().err


@pytest.mark.parametrize("reason", [errno.EPERM, errno.EXDEV, errno.ENOENT])
def test_a_file_that_cannot_be_named_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(files.os, "link", refuse)
    for text in ("first", "second, longer"):
        atomic_write_text(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

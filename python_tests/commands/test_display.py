"""Commands whose stdout is closed or full, and training whose terminal closes."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from python_tests.support.runs import options, run_train
from recgrela import env, evaluate, items, recommend, train
from recgrela.runs import checkpoint
from recgrela.runs.curves import draw_curves
from recgrela.runs.tensorboard import EventLog

NOTE = "note: cannot write to standard output"
Command = Callable[[list[str]], int]


KINDS = pytest.mark.parametrize("kind", ["closed pipe", "full", "closed"])


@contextmanager
def unusable_stdout(kind: str) -> Iterator[None]:
    """Commands redirect a stream that they cannot flush, so its buffer is empty in the end."""
    stream = None
    if kind != "closed":
        descriptor = os.open("/dev/full", os.O_WRONLY)
        if kind == "closed pipe":
            os.close(descriptor)
            reader, descriptor = os.pipe()
            os.close(reader)
        stream = os.fdopen(descriptor, "w")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)  # pytest replaces a fixture's stream before the test
        yield
    if stream is not None:
        stream.close()


@KINDS
@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (evaluate.main, []),
        (recommend.main, ["--user=7"]),
        (recommend.main, ["--all"]),
        (recommend.main, ["--all", "--k=30", "--format=jsonl"]),
        (recommend.main, ["--user=7", "--format=csv"]),
        (env.main, []),
        (env.main, ["--json"]),
        (train.main, ["--help"]),
    ],
)
def test_results_are_written_or_the_command_fails(
    finished_run: Path, kind: str, command: Command, argv: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with unusable_stdout(kind):
        code = command(argv if command in (env.main, train.main) else [str(finished_run), *argv])
    err = capfd.readouterr().err
    if kind == "closed pipe":
        assert code == 141 and "error" not in err
    else:
        assert code == 2 and err.splitlines()[-1].startswith("error: cannot write to standard output: ")
    assert "Traceback" not in err and "Exception ignored" not in err


@KINDS
def test_display_ends_no_command(
    finished_run: Path, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    retired = tmp_path / "retired.csv"
    retired.write_text("item_id\n7\n")
    with unusable_stdout(kind):
        assert run_train(*options(tmp_path, "run", "--train.epochs=1")) == 0
    with unusable_stdout(kind):
        assert items.main([str(finished_run), f"--out={tmp_path / 'grown'}", f"--retire={retired}"]) == 0
    assert (tmp_path / "run" / "results.json").is_file()
    assert capfd.readouterr().err.count(NOTE) == 2
    with unusable_stdout(kind), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", sys.stdout)
        output = tmp_path / "output.csv"
        assert recommend.main([str(finished_run), "--all", "--format=csv", f"--output={output}"]) == 0
    assert output.stat().st_size > 0


def test_a_terminal_that_closes(tmp_path: Path) -> None:
    """SIGHUP while rich's progress is shown, from the terminal and from its shell."""
    argv = options(tmp_path, "run", "--train.epochs=1000", "--train.patience=1000")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-m", "recgrela.train", *argv])
    shown, deadline = b"", time.monotonic() + 120
    while b"epoch 1/" not in shown and time.monotonic() < deadline:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    os.kill(child, signal.SIGHUP)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129, shown
    run = tmp_path / "run"
    assert checkpoint.read_meta(run / "last.safetensors")["state"]["total_steps"] > 0
    assert not (run / "results.json").exists()


def test_pictures_and_events_that_cannot_be_written_end_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    draw_curves(file / "curves.png", [], "NDCG@10", Console())
    assert "note: curves.png is not drawn: " in capsys.readouterr().out
    pytest.importorskip("tensorboard")
    with EventLog(file / "tensorboard", Console()) as log:
        log.write({})
    assert capsys.readouterr().out.count("note: no more TensorBoard events are written: ") == 1
    with EventLog(tmp_path / "tensorboard", Console()) as log:
        log.write({"loss_curve": []})  # damaged
        log.write({"loss_curve": []})
    assert capsys.readouterr().out.count("note: no more TensorBoard events are written: ") == 1

"""The runs of a comparison: processes, stop signals, failures, and the lock of the folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from python_tests.compare.comparison import MODELS, REQUESTED, SIZES, files, folders, start, table
from python_tests.support.runs import DATA, PLAIN, TRAIN
from recgrela.compare import __main__ as compare
from recgrela.compare import runner
from recgrela.compare.__main__ import main
from recgrela.compare.options import Request, parse_args
from recgrela.compare.plan import Plan, make_plan
from recgrela.compare.runner import Runner, describe_failure
from recgrela.models import CONFIGS
from recgrela.runs.folder import RunFolder
from recgrela.settings.run import read_config
from recgrela.system.signals import Stopped


@pytest.mark.usefixtures("in_process")
def test_another_model_joins_and_one_that_fails_is_reported(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model whose process fails, and one that trains, beside finished ones."""
    make = runner.train_options
    monkeypatch.setattr(
        runner, "train_options", lambda run: make(run) + ["--train.nothing"] * (run.label == "wild")
    )
    before = {path: text for path, text in files(copied).items() if "runs" in path.parts}
    joined = ["--models", "RecGRELA", "wild=RecGRELA", "narrow=RecGRELA", "third=RecGRELA"]
    sizes = ["--model.third.num_layers=1", "--model.wild.num_layers=1"]
    asked = [word for word in REQUESTED if word not in MODELS]
    assert main([*joined, *sizes, *asked[:-1], f"--out={copied}"]) == 1  # with one seed less
    out, err = capfd.readouterr()
    assert "wild, seed 1 (2 of 4): failed: unknown option --train.nothing" in out
    assert "error: unknown option --train.nothing" in err
    lines = table(copied)
    assert list(lines)[-4:] == ["RecGRELA", "wild", "narrow", "third"]
    assert (lines["wild"]["failed_seeds"], lines["wild"]["NDCG@10"]) == ("1", "")
    assert int(lines["wild"]["parameters"]) > 0
    assert lines["third"]["seeds"] == lines["narrow"]["seeds"] == "1"
    assert float(lines["third"]["NDCG@10"]) > 0 and lines["third"]["NDCG@10 sd"] == ""
    markdown = (copied / "table.md").read_text()
    assert "| wild | failed |" in markdown and "FAILED: wild, seed 1: unknown option" in markdown
    assert {path: text for path, text in files(copied).items() if path in before} == before

    monkeypatch.setattr(runner, "train_options", make)  # the failed run is repeated, finished ones are not
    assert main([*joined, *sizes, *asked[:-1], f"--out={copied}"]) == 0
    assert capfd.readouterr().out.count("already finished") == 3
    assert table(copied)["wild"]["NDCG@10"] == table(copied)["third"]["NDCG@10"]


def test_a_comparison_stopped_by_a_signal_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    sizes = [word for word in SIZES if ".RecGRELA." in word]
    long = ["--models", "RecGRELA", "--seeds", "1", "--train.epochs=20", *sizes, *DATA, *PLAIN, *TRAIN]
    argv = [sys.executable, "-m", "recgrela.compare", *long, f"--out={out}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = RunFolder(out / "runs" / "RecGRELA" / "1")
    deadline = time.monotonic() + 120
    while not folder.checkpoint_path("last").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, err = process.communicate(timeout=120)
    assert process.returncode == 143, text + err
    assert "stopped by SIGTERM, 0 of 1 runs finished" in text
    assert "resume with the same command" in text and err == ""
    first = folder.metrics.read_epochs()
    assert 0 < len(first) < 20 and not folder.results_path.exists()
    assert first[0]["peak_memory"] > 1e7  # of a process that only trains

    monkeypatch.setattr(runner.subprocess, "Popen", start)
    assert main(argv[3:]) == 0
    assert folder.metrics.read_epochs()[: len(first)] == first and len(folder.metrics.read_epochs()) == 20
    assert len(folder.read_protocol()["resumed"]) == 1


@pytest.mark.parametrize(
    ("received", "sent"),
    [
        ([signal.SIGINT], [signal.SIGINT]),
        ([signal.SIGHUP], [signal.SIGHUP]),
        ([signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM]),
    ],
)
@pytest.mark.parametrize("is_early", [False, True])
def test_each_signal_reaches_the_run_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    received: list[signal.Signals],
    sent: list[signal.Signals],
    is_early: bool,
) -> None:
    """A signal arrives while the process starts or while it runs; no other run starts after it."""
    begun: list[object] = []
    got: list[signal.Signals] = []

    class Process:
        def __init__(self, command: list[str], **options: object) -> None:
            begun.append(command)
            if is_early:
                os.kill(os.getpid(), received[0])

        def send_signal(self, signum: signal.Signals) -> None:
            got.append(signum)

        def wait(self) -> int:
            for signum in received[is_early:]:
                os.kill(os.getpid(), signum)
            return 128 + sent[-1]

    monkeypatch.setattr(runner.subprocess, "Popen", Process)
    plan = make_plan(parse_args([*REQUESTED, f"--out={tmp_path / 'out'}"]))
    # nohup and background jobs of a shell ignore some signals.
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in set(received)}
    try:
        with Runner(tmp_path / "out") as opened:
            for run in plan.runs:
                with pytest.raises(Stopped):
                    opened.make(run)
        assert all(signal.getsignal(signum) == signal.SIG_DFL for signum in before)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert (len(begun), got) == (1, sent)


@pytest.mark.usefixtures("no_training")
def test_one_comparison_at_a_time_in_a_folder(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copied)
    fewer = [*REQUESTED[:-1], "--train.save_minutes=7", f"--out={copied}"]
    with Runner(copied):
        assert main(fewer) == 2
        assert (
            f"{copied}: another comparison, or a run that it left, is using the folder"
            in capsys.readouterr().err
        )
        assert files(copied) == before
    assert main(fewer) == 0
    assert yaml.safe_load((copied / "comparison.yaml").read_text())["seeds"] == [1]


@pytest.mark.usefixtures("no_training")
def test_a_comparison_made_in_the_meantime_is_detected(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another comparison begins and ends while the data is read."""
    out = tmp_path / "out"

    def plan_slowly(request: Request) -> Plan:
        made = make_plan(request)
        shutil.copytree(whole, out)
        return made

    monkeypatch.setattr(compare, "make_plan", plan_slowly)
    assert main([*REQUESTED, "--train.lr=0.5", f"--out={out}"]) == 2
    assert "comparison.yaml: train.lr is 0.01, but 0.5 is requested" in capsys.readouterr().err
    assert (out / "comparison.yaml").read_bytes() == (whole / "comparison.yaml").read_bytes()


def test_a_folder_with_only_a_lock_counts_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison may end before it writes comparison.yaml. A folder of something else gets no lock."""
    monkeypatch.setattr(runner.Runner, "make", lambda self, run: "out of memory")
    with Runner(tmp_path / "out"):
        pass
    assert main([*REQUESTED, f"--out={tmp_path / 'out'}"]) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert main([*REQUESTED, f"--out={tmp_path / 'other'}"]) == 2
    assert "not empty, and not a comparison" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]
    assert main([*REQUESTED, f"--out={tmp_path / 'other' / 'file' / 'out'}"]) == 2
    assert "cannot create or write the folder" in capsys.readouterr().err


def test_the_lock_lasts_until_the_last_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training process keeps the lock after the comparison is killed."""
    out = tmp_path / "out"
    plan = make_plan(parse_args([*REQUESTED, f"--out={out}"]))
    popen = subprocess.Popen
    left: list[subprocess.Popen[bytes]] = []

    def leave(command: list[str], **options: object) -> object:
        left.append(popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.subprocess, "Popen", leave)
    with pytest.raises(KeyboardInterrupt), Runner(out) as opened:
        opened.make(plan.runs[0])
    assert main([*REQUESTED, f"--out={out}"]) == 2
    assert "or a run that it left" in capsys.readouterr().err
    left[0].communicate(b"\n")
    with Runner(out):
        pass


@pytest.mark.usefixtures("in_process")
def test_an_interrupted_run_resumes_with_moved_data(tmp_path: Path) -> None:
    """Other settings that a resumed run may change are taken too."""
    rng = np.random.default_rng(0)
    first, second = tmp_path / "a.inter", tmp_path / "b.inter"
    events = [f"u{user}\ti{rng.integers(40)}\t{time}" for user in range(30) for time in range(12)]
    first.write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *events]) + "\n")
    sizes = [word for word in SIZES if ".RecGRELA." in word]
    asked = ["--models", "RecGRELA", "--seeds", "1", *sizes, "--data.max_len=50", *PLAIN, *TRAIN]
    asked += ["--train.epochs=2", f"--out={tmp_path / 'out'}"]
    assert main([*asked, f"--data.path={first}"]) == 0
    folder = RunFolder(tmp_path / "out" / "runs" / "RecGRELA" / "1")
    expected = folder.read_json(folder.results_path)
    folder.results_path.unlink()
    folder.ranks_path.unlink()
    first.rename(second)
    free = ["--train.save_minutes=7", "--train.log_every=3", "--train.tensorboard=auto"]
    assert main([*asked, *free, f"--data.path={second}"]) == 0
    assert folder.read_json(folder.results_path)["test"] == expected["test"]
    settings = read_config(folder.config_path, CONFIGS)
    assert settings.data.path == str(second)
    train = settings.train
    assert (train.save_minutes, train.log_every, train.tensorboard) == (7, 3, "auto")


@pytest.mark.usefixtures("in_process")
def test_a_run_without_a_checkpoint_starts_again(copied: Path) -> None:
    folder = folders(copied)["narrow", 1]
    expected = folder.results_path.read_text()
    for path in folder.path.iterdir():
        if path != folder.config_path:
            path.unlink()
    assert main([*REQUESTED, f"--out={copied}"]) == 0
    assert folder.results_path.read_text() == expected


def test_reasons_of_failed_runs() -> None:
    assert describe_failure(2, "a warning\nerror: out of memory: more\n") == "out of memory: more"
    assert describe_failure(1, "Traceback\n  x\nKeyError: 'bug'\n") == "KeyError: 'bug'"
    assert describe_failure(1, "") == "exit code 1"
    assert describe_failure(-signal.SIGKILL, "") == "ended by SIGKILL (the system may have run out of memory)"
    assert describe_failure(-signal.SIGSEGV, "x") == "ended by SIGSEGV"
    assert describe_failure(143, "").startswith("stopped by SIGTERM")

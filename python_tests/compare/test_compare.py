from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from python_tests.support.runs import DATA, PLAIN, TRAIN, run_train
from recgrela import evaluate
from recgrela.compare import __main__ as compare
from recgrela.compare import runner
from recgrela.compare.__main__ import main
from recgrela.compare.options import Request, parse_args
from recgrela.compare.plan import Plan, make_plan
from recgrela.compare.rows import make_rows
from recgrela.compare.runner import Runner, describe_failure
from recgrela.evaluation.metrics import NAMES
from recgrela.models import CONFIGS
from recgrela.runs.folder import RunFolder
from recgrela.settings.run import read_config
from recgrela.system.signals import Stopped

POPEN = subprocess.Popen
LABELS, SEEDS = ("RecGRELA", "narrow"), (1, 2)
SIZES = [f"--model.{label}.{key}" for label in LABELS for key in ("num_layers=2", "num_heads=2")]
SIZES += ["--model.RecGRELA.hidden_size=16", "--model.narrow.hidden_size=4"]
MODELS = ["--models", "RecGRELA", "narrow=RecGRELA"]
SHARED = [*DATA, *PLAIN, *TRAIN, "--train.epochs=2"]
ASKED = [*MODELS, *SIZES, *SHARED, "--train.lr=1e-2", "--seeds", "1", "2"]


class InProcess:
    """A training process of `Runner` that trains in this process, which has imported PyTorch already."""

    def __init__(self, command: list[str], stderr: IO[bytes], **options: object) -> None:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.code = run_train(*command[3:])
        stderr.write(errors.getvalue().encode())

    def wait(self) -> int:
        return self.code


def start(command: list[str], **options: Any) -> Any:
    """`subprocess.Popen`, but a valid training command runs in this process."""
    is_training = command[:3] == [sys.executable, "-m", "recgrela.train"]
    return (InProcess if is_training and "--train.nothing" not in command else POPEN)(command, **options)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.subprocess, "Popen", start)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two models and two seeds."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.subprocess, "Popen", start)
        assert main([*ASKED, f"--out={out}"]) == 0
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of the comparison that a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(runner.subprocess, "Popen", refused)


def folders(out: Path) -> dict[tuple[str, int], RunFolder]:
    return {(label, s): RunFolder.open(out / "runs" / label / str(s)) for label in LABELS for s in SEEDS}


def files(out: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(out.rglob("*")) if p.is_file()}


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "table.csv").open(newline="") as file:
        return {line["label"]: line for line in csv.DictReader(file)}


def test_the_table_is_the_runs_own_numbers(whole: Path) -> None:
    lines, made = table(whole), folders(whole)
    assert list(lines) == list(LABELS)
    for label, line in lines.items():
        finals = [made[label, seed].metrics.read()[-1]["test"]["unmasked"] for seed in SEEDS]
        for name in NAMES:
            values = [final[name] for final in finals]
            assert float(line[name]) == pytest.approx(statistics.mean(values), abs=1e-12)
            assert float(line[f"{name} sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
            assert float(line[f"{name} low"]) <= float(line[name]) <= float(line[f"{name} high"])
        records = [record for seed in SEEDS for record in made[label, seed].metrics.read_epochs()]
        assert float(line["epoch_seconds"]) == statistics.median(r["seconds"] for r in records)
        assert int(line["peak_memory"]) == max(r["peak_memory"] for r in records)
        assert line["epochs"] == "2 2" and line["seeds"] == "1 2" and line["failed_seeds"] == ""
        best = [made[label, seed].read_json(made[label, seed].results_path)["epoch"] for seed in SEEDS]
        assert line["best_epochs"] == " ".join(map(str, best))
        assert (line["model"], line["objective"]) == ("RecGRELA", "all")
    assert lines["RecGRELA"]["p NDCG@10"] == "" and 0 < float(lines["narrow"]["p NDCG@10"]) <= 1
    for column in ("parameters", "flops", "flops_scores"):
        assert int(lines["RecGRELA"][column]) > int(lines["narrow"][column]) > 0


def test_the_files_of_a_comparison(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted(
        [".lock", "bubbles.png", "comparison.yaml", "runs", "table.csv", "table.md"]
    )
    assert (whole / "bubbles.png").read_bytes().startswith(b"\x89PNG")
    quality = [line.split(" | ") for line in (whole / "table.md").read_text().splitlines()[2:4]]
    lines = table(whole)
    for column, name in enumerate(NAMES, 1):
        means = [f"{float(lines[label][name]):.4f}" for label in LABELS]
        best = max(means)
        for cells, mean in zip(quality, means, strict=True):
            marked = f"**{mean}**" if mean == best else f"<u>{mean}</u>"
            low, high = (float(lines[cells[0].strip("| ")][f"{name} {end}"]) for end in ("low", "high"))
            sd = float(lines[cells[0].strip("| ")][f"{name} sd"])
            assert cells[column] == f"{marked} ± {sd:.4f}<br>({low:.4f}, {high:.4f})"


def test_a_run_of_a_comparison_is_a_run(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folders(whole)["narrow", 2]
    assert evaluate.main([str(run.path), "--split=test"]) == 0
    expected = run.read_json(run.results_path)["test"]["unmasked"]["NDCG@10"]
    assert f"{expected:.4f}" in capsys.readouterr().out
    assert run.read_protocol()["seeds"]["train"] == 2


@pytest.mark.usefixtures("no_training")
def test_nothing_is_repeated(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copied)
    assert main([*ASKED, f"--out={copied}"]) == 0
    assert capsys.readouterr().out.count("already finished") == 4
    after = files(copied)
    assert {path: text for path, (_, text) in after.items()} == {p: text for p, (_, text) in before.items()}
    in_runs = [path for path in before if "runs" in path.relative_to(copied).parts]
    assert len(in_runs) == 4 * 9
    assert all(after[path] == before[path] for path in in_runs)
    assert main([f"--config={copied / 'comparison.yaml'}", f"--out={copied}"]) == 0
    assert {path: text for path, (_, text) in files(copied).items()} == {p: t for p, (_, t) in after.items()}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train.lr=0.5"], "comparison.yaml: train.lr is 0.01, but 0.5 is requested"),
        (["--train.epochs=3"], "comparison.yaml: train.epochs is 2"),
        (["--train.objective=last"], "comparison.yaml: train.objective is 'auto'"),
        (["--train.threads=2"], "comparison.yaml: train.threads is 1"),
        (["--data.synthetic_seed=4"], "comparison.yaml: data.synthetic_seed is 0"),
        (["--model.narrow.num_layers=1"], "comparison.yaml: model.narrow.num_layers is 2"),
    ],
)
def test_another_comparison_in_the_folder_is_an_error(
    whole: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    before = files(whole)
    assert main([*ASKED, *more, f"--out={whole}"]) == 2
    err = capsys.readouterr().err
    assert message in err and "another --out" in err and err.count("\n") == 1
    assert files(whole) == before


@pytest.mark.usefixtures("no_training")
def test_a_run_of_other_settings_or_data_is_an_error(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "comparison.yaml").unlink()
    assert main([*ASKED, f"--out={copied}"]) == 2
    assert "not empty, and not a comparison" in capsys.readouterr().err
    only_seeds = {"seeds": [1, 2]}
    (copied / "comparison.yaml").write_text(yaml.safe_dump(only_seeds))
    assert main([*ASKED, "--train.lr=0.5", f"--out={copied}"]) == 2
    assert "runs/RecGRELA/1/config.yaml: train.lr is 0.01, but 0.5 is requested" in capsys.readouterr().err
    protocol = folders(copied)["narrow", 1].protocol_path
    content = json.loads(protocol.read_text())
    content["data"]["packed_sha256"] = "0" * 64
    protocol.write_text(json.dumps(content))
    assert main([*ASKED, f"--out={copied}"]) == 2
    assert "the events or their order differ from those of this run" in capsys.readouterr().err
    folders(copied)["RecGRELA", 1].ranks_path.unlink()
    folders(copied)["RecGRELA", 1].checkpoint_path("last").unlink()
    assert main([*ASKED, f"--out={copied}"]) == 2
    assert "has results, but neither ranks.safetensors nor a last checkpoint" in capsys.readouterr().err


@pytest.mark.usefixtures("no_training")
def test_runs_that_ranked_different_users_do_not_compare(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folders(copied)["narrow", 2].ranks_path
    arrays = load_file(path)
    save_file(arrays | {"test/users": arrays["test/users"][::-1].copy()}, path)
    assert main([*ASKED, f"--out={copied}"]) == 2
    assert "the users or their order differ from those of" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:100])
    assert main([*ASKED, f"--out={copied}"]) == 2
    assert "ranks.safetensors: damaged" in capsys.readouterr().err


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
    asked = [word for word in ASKED if word not in MODELS]
    assert main([*joined, *sizes, *asked[:-1], f"--out={copied}"]) == 1  # with one seed less
    out, err = capfd.readouterr()
    assert "wild, seed 1 (2 of 4): failed: unknown option --train.nothing" in out
    assert "error: unknown option --train.nothing" in err
    lines = table(copied)
    assert list(lines) == ["RecGRELA", "wild", "narrow", "third"]
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


def test_a_comparison_without_a_finished_run_is_a_table_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.Runner, "make", lambda self, run: "out of memory")
    assert main([*ASKED, f"--out={tmp_path / 'out'}"]) == 1
    assert {line["NDCG@10"] for line in table(tmp_path / "out").values()} == {""}
    assert (tmp_path / "out" / "table.md").read_text().count(": out of memory") == 4
    assert not (tmp_path / "out" / "bubbles.png").exists()


def test_no_p_value_without_a_run_of_the_first_model(copied: Path) -> None:
    contenders = make_plan(parse_args([*ASKED, f"--out={copied}"])).contenders
    first, second = make_rows(contenders, {("RecGRELA", 1): "why", ("RecGRELA", 2): "why"})
    assert first.quality is None and first.failures == {1: "why", 2: "why"}
    assert second.quality is not None and second.quality.p_value is None


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
        ([signal.SIGHUP], [signal.SIGTERM]),
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
    plan = make_plan(parse_args([*ASKED, f"--out={tmp_path / 'out'}"]))
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
    fewer = [*ASKED[:-1], "--train.save_minutes=7", f"--out={copied}"]
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
    assert main([*ASKED, "--train.lr=0.5", f"--out={out}"]) == 2
    assert "comparison.yaml: train.lr is 0.01, but 0.5 is requested" in capsys.readouterr().err
    assert (out / "comparison.yaml").read_bytes() == (whole / "comparison.yaml").read_bytes()


def test_a_folder_with_only_a_lock_counts_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison may end before it writes comparison.yaml. A folder of something else gets no lock."""
    monkeypatch.setattr(runner.Runner, "make", lambda self, run: "out of memory")
    with Runner(tmp_path / "out"):
        pass
    assert main([*ASKED, f"--out={tmp_path / 'out'}"]) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert main([*ASKED, f"--out={tmp_path / 'other'}"]) == 2
    assert "not empty, and not a comparison" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]
    assert main([*ASKED, f"--out={tmp_path / 'other' / 'file' / 'out'}"]) == 2
    assert "cannot create or write the folder" in capsys.readouterr().err


def test_the_lock_lasts_until_the_last_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training process keeps the lock after the comparison is killed."""
    out = tmp_path / "out"
    plan = make_plan(parse_args([*ASKED, f"--out={out}"]))
    popen = subprocess.Popen
    left: list[subprocess.Popen[bytes]] = []

    def leave(command: list[str], **options: object) -> object:
        left.append(popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.subprocess, "Popen", leave)
    with pytest.raises(KeyboardInterrupt), Runner(out) as opened:
        opened.make(plan.runs[0])
    assert main([*ASKED, f"--out={out}"]) == 2
    assert "or a run that it left" in capsys.readouterr().err
    left[0].communicate(b"\n")
    with Runner(out):
        pass


@pytest.mark.usefixtures("in_process")
def test_a_cut_run_resumes_with_moved_data(tmp_path: Path) -> None:
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
    assert main([*ASKED, f"--out={copied}"]) == 0
    assert folder.results_path.read_text() == expected


def test_reasons_of_failed_runs() -> None:
    assert describe_failure(2, "a warning\nerror: out of memory: more\n") == "out of memory: more"
    assert describe_failure(1, "Traceback\n  x\nKeyError: 'bug'\n") == "KeyError: 'bug'"
    assert describe_failure(1, "") == "exit code 1"
    assert describe_failure(-signal.SIGKILL, "") == "ended by SIGKILL (the system may have run out of memory)"
    assert describe_failure(-signal.SIGSEGV, "x") == "ended by SIGSEGV"
    assert describe_failure(143, "").startswith("stopped by SIGTERM")

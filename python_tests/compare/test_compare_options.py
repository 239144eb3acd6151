"""Options, errors and plans of `recgrela.compare`; nothing is trained here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from python_tests.support.runs import DATA
from recgrela.compare.__main__ import main
from recgrela.compare.options import parse_args
from recgrela.compare.plan import make_plan


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--models", "RecGRELAs"], "models: 'RecGRELAs' is not one of RecGRELA"),
        (["--models", "RecGRELAs"], "did you mean 'RecGRELA'?"),
        (["--models", "RecGRELA", "RecGRELA"], "'RecGRELA' is given twice; give one a label: LABEL=RecGRELA"),
        (["--models", "../x=RecGRELA"], "a label consists of letters, digits and _"),
        (["--models"], "--models needs a value"),
        ([], "--models: give at least one of"),
        (["--models", "RecGRELA", "--seeds"], "--seeds needs a value"),
        (["--models", "RecGRELA", "--seeds", "1", "2", "1"], "seeds: 1 is given twice"),
        (["--models", "RecGRELA", "--seeds", "x"], "seeds: ['x'] is not a list of whole numbers"),
        (["--models", "RecGRELA", "--seeds=-1"], "seeds: -1 is below 0"),
        (
            ["--models", "RecGRELA", "--train.seed=3"],
            "--train.seed: each run has its own value",
        ),
        (["--models", "RecGRELA", "--model.hidden_size=8"], "did you mean '--model.RecGRELA.hidden_size'?"),
        (
            ["--models", "RecGRELA", "--model.RecGRELA.num_heads=7"],
            "RecGRELA: model.num_heads: 7 does not",
        ),
        (["--models", "RecGRELA", "--model.RecGRELA.num_heads=x"], "model.RecGRELA.num_heads: 'x' is not a"),
        (["--models", "RecGRELA", "--data.path=nowhere.csv"], "nowhere.csv"),
        (["--models", "RecGRELA", "--train.device=gpu"], "device 'gpu' is not one of"),
        (
            ["--models", "x=RecGRELA", "--model.x.mode=bidirectional", "--train.objective=all"],
            "x: train.objective: 'all' is not supported by this RecGRELA, which trains on: last",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main([*argv, f"--out={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_seeds_and_models_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    for text, message in {
        "seeds: 3": "seeds: 3 is not a list of whole numbers",
        "seeds: []": "seeds: [] is not a list of whole numbers",
        "models: [3]": "models: [3] is not a list of names",
        "models: [RecGRELA]\ntrain: {seed: 3}": "train.seed: each run has its own value",
        "models: [RecGRELA]\nmodel: {Rec: {num_heads: 2}}": "unknown key model.Rec.num_heads",
    }.items():
        path.write_text(text)
        assert main([f"--config={path}", f"--out={tmp_path / 'out'}"]) == 2
        err = capsys.readouterr().err
        assert message in err and str(path) in err
    assert main(["--models", "RecGRELA"]) == 2
    assert "--out: give the folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--models", "RecGRELA", f"--out={tmp_path / 'file'}"]) == 2
    assert "is a file, but --out must name the folder" in capsys.readouterr().err


def test_objective_auto_depends_on_the_model(tmp_path: Path) -> None:
    models = ["--models", "RecGRELA", "both=RecGRELA", "--model.both.mode=bidirectional"]
    asked = [*models, *DATA, f"--out={tmp_path / 'out'}"]
    causal, both = make_plan(parse_args(asked)).contenders
    assert {run.config.train.objective for run in causal.runs} == {"all"}
    assert {run.config.train.objective for run in both.runs} == {"last"}
    shared = [contender.runs[0].config for contender in (causal, both)]
    assert shared[0].data == shared[1].data
    free = {"train.objective", "train.output"}
    one, two = ({k: v for k, v in c.flat().items() if k.startswith("train.")} for c in shared)
    assert {key for key in one if one[key] != two[key]} == free


def test_presets_and_files_come_before_the_command_line(tmp_path: Path) -> None:
    paper = parse_args(["--preset=paper", "--models", "x=RecGRELA", "--out=o"])
    assert (paper.objective, paper.train.batch_size, paper.data.order) == ("last", 2048, "recbole")
    assert (paper.models["x"].mode, paper.models["x"].padding) == ("bidirectional", "attend")
    path = tmp_path / "c.yaml"
    text = "seeds: [4, 5]\nmodels: [x=RecGRELA]\nmodel: {x: {num_layers: 3}}\ntrain: {lr: 0.5, epochs: 7}\n"
    path.write_text(text)
    request = parse_args([f"--config={path}", "--train.lr=0.25", "--out=o"])
    assert (request.seeds, request.models["x"].num_layers) == ((4, 5), 3)
    assert (request.train.lr, request.train.epochs, request.objective) == (0.25, 7, "auto")
    assert parse_args([f"--config={path}", "--seeds", "6", "--out=o"]).seeds == (6,)
    run = request.run_config("x", "all", 5)
    assert (run.train.output, run.train.name, run.train.seed) == (os.path.join("o", "runs", "x"), "5", 5)


def test_help_lists_the_settings_of_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--models", "x=RecGRELA", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for option in (
        "--models",
        "--seeds",
        "--out",
        "--model.x.hidden_size",
        "--train.objective",
        "--data.path",
    ):
        assert option in text
    assert "--train.seed" not in text


def test_counting_flops_keeps_the_random_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    make_plan(parse_args(["--models", "RecGRELA", *DATA, f"--out={tmp_path / 'out'}"]))
    assert torch.equal(torch.get_rng_state(), before)

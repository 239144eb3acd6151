"""Every model of the registry through the commands: train, resume, AMP, evaluate, recommend."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from python_tests.support.runs import DATA, PLAIN, TRAIN, assert_same_tensors, run_train
from recgrela import recommend
from recgrela.models import CONFIGS, MODELS, ModelEntry, build, from_official
from recgrela.models.base import Objective
from recgrela.nn import Sequences
from recgrela.runs.folder import RunFolder
from recgrela.runs.saved import evaluate, load_data, load_run
from recgrela.system.errors import ConfigError

SIZES = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "inner_size": 32, "state_size": 4, "flip": 9}


def train(name: str, objective: Objective, output: Path, run: str, *more: str) -> int:
    known = {field.name for field in fields(MODELS[name].config)}
    model = [f"--model.{key}={value}" for key, value in SIZES.items() if key in known]
    where = [f"--train.output={output}", f"--train.name={run}", "--data.max_len=16"]
    argv = [f"--model.name={name}", f"--train.objective={objective}", *model, *DATA, *PLAIN, *TRAIN, *where]
    return run_train(*argv, "--train.epochs=2", *more)


def objective_of(name: str) -> Objective:
    """Every position if the model supports it."""
    return "all" if name in EVERY_POSITION else "last"


EVERY_POSITION = ["RecGRELA", "SASRec", "LRURec", "Mamba4Rec", "EulerFormer", "RecBLR"]


@pytest.mark.parametrize("name", MODELS)
def test_trains_resumes_evaluates_and_recommends(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = objective_of(name)
    assert train(name, objective, tmp_path, "whole") == 0
    assert train(name, objective, tmp_path, "cut", "--train.max_steps=5") == 0
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_train("--resume", str(cut), "--train.max_steps", "null") == 0
    for file in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(whole / file, cut / file)
    first, second, _ = RunFolder.open(whole).metrics.read()
    assert first["loss"] > second["loss"] > 0

    saved = load_run(whole, None, torch.device("cpu"))
    assert type(saved.model) is MODELS[name].model
    rankings = evaluate(saved, load_data(saved), batch_size=7)
    results = json.loads((whole / "results.json").read_text())
    for split in ("valid", "test"):
        assert rankings[split].as_dict()["unmasked"] == pytest.approx(results[split]["unmasked"], abs=1e-12)
    capsys.readouterr()
    assert recommend.main([str(whole), "--user", "1", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 10


@pytest.mark.parametrize("name", MODELS)
def test_trains_in_bfloat16_on_the_last_position(name: str, tmp_path: Path) -> None:
    more = ("--train.amp=true", "--train.epochs=1", "--train.max_tokens=700")
    assert train(name, "last", tmp_path, "low", *more) == 0
    first, final = RunFolder.open(tmp_path / "low").metrics.read()
    assert 0 < first["loss"] < 5 and final["test"]["users"] == 60


def test_the_model_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).parents[2] / "docs" / "new-model.md"
    source = docs.read_text().split("```python\n")[1].split("```")[0]
    module = ModuleType("recgrela.models.mean_pool")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look it up
    exec(compile(source, str(docs), "exec"), module.__dict__)
    monkeypatch.setitem(MODELS, "MeanPool", ModelEntry(module.MeanPoolConfig, module.MeanPool))
    monkeypatch.setitem(CONFIGS, "MeanPool", module.MeanPoolConfig)
    assert train("MeanPool", "all", tmp_path, "pool") == 0
    first, second, _ = RunFolder.open(tmp_path / "pool").metrics.read()
    assert first["loss"] > second["loss"] > 0
    model = build(module.MeanPoolConfig(hidden_size=8), 20, 10).eval()
    items = torch.tensor([3, 5, 7])
    rows = torch.nn.functional.layer_norm(model.item_embedding.weight[items], (8,), eps=1e-12)
    offsets = torch.tensor([0, 3])
    layer = model.layers[0](rows.mean(0)[None], Sequences.of(offsets, 3, 3))
    torch.testing.assert_close(model.hidden_states(items, offsets, 3, True)[0], layer[0])
    with pytest.raises(ConfigError, match="MeanPool cannot load authors' weights"):
        from_official("MeanPool", {"item_embedding.weight": torch.zeros(3, 2)}, {})


@pytest.mark.parametrize("name", [name for name in MODELS if name not in EVERY_POSITION])
def test_an_unsupported_objective_is_an_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(name, "all", tmp_path, "no") == 2
    assert "train.objective" in capsys.readouterr().err
    assert set(get_args(Objective)) == {"last", "all"} and not (tmp_path / "no").exists()

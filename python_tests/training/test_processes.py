"""Training, evaluation and comparison in several processes equal those in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from python_tests.support.processes import run_commands
from python_tests.support.runs import DATA, MODEL, PLAIN, TRAIN, run_train
from recgrela.models import CONFIGS
from recgrela.runs.folder import RunFolder
from recgrela.settings.fields import Option, options_of

# Random numbers differ between processes, so that dropout would make the weights incomparable.
SURE = ["--train.pieces=4", "--train.epochs=2"]
CASES = {
    "all": ["--train.objective=all"],
    "last": ["--train.objective=last", "--train.batch_size=100"],
    "attend": [
        "--train.objective=last",
        "--train.batch_size=101",
        "--model.mode=bidirectional",
        "--model.padding=attend",
    ],
    "parts": ["--train.objective=all", "--train.max_tokens=30"],
    "decay": ["--train.objective=all", "--train.lr_decay=cosine", "--train.warmup_steps=5"],
    "sharded": ["--train.objective=all", "--train.shard_items=true"],
    "sharded last": ["--train.objective=last", "--train.shard_items=true", "--train.max_tokens=300"],
    "long": ["--train.objective=all", "--data.eval_max_len=80", "--train.eval_batch_size=7"],
}
THREE_STEPS = ["--train.objective=last", "--train.batch_size=60", "--train.max_steps=3"]
SHARDED = ["LRURec"]  # has item biases
OTHERS = [name for name in CONFIGS if name != "RecGRELA"]


class Runs(NamedTuple):
    """The folder of the runs of each number of processes."""

    one: Path
    two: Path
    four: Path


def commands(output: Path) -> list[list[str]]:
    """One training command for each case and model."""
    common = [*DATA, *PLAIN, *TRAIN, *SURE, f"--train.output={output}"]
    found = [
        ["train", *common, *MODEL, *without_dropout("RecGRELA"), *more, f"--train.name={name}"]
        for name, more in CASES.items()
    ]
    for name in OTHERS:
        model = [f"--model.name={name}", *small(name), *without_dropout(name)]
        shard = ["--train.shard_items=true"] if name in SHARDED else []
        found.append(["train", *common, *model, *shard, *THREE_STEPS, f"--train.name={name}"])
    return found


def small(name: str) -> list[str]:
    """Settings that make a model small."""
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    return [f"--model.{key}={value}" for key, value in sizes.items() if f"model.{key}" in options(name)]


def without_dropout(name: str) -> list[str]:
    """Settings that disable all dropout of a model."""
    random = ("dropout", "drop_path", "contrastive_weight")  # the contrastive loss draws angles
    return [f"--{key}=0" for key in options(name) if key.rpartition(".")[2].endswith(random)]


def options(name: str) -> dict[str, Option]:
    return options_of(CONFIGS[name])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same runs in one, two and four processes."""
    folders = Runs(*(tmp_path_factory.mktemp(name) for name in Runs._fields))
    for _, *argv in commands(folders.one):
        assert run_train(*argv) == 0
    for world, folder in ((2, folders.two), (4, folders.four)):
        for result in run_commands(world, commands(folder)):
            assert result.returncode == 0, result.stderr
    return folders


@pytest.mark.parametrize("world", ["two", "four"])
@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_weights_losses_and_metrics_equal_those_of_one_process(runs: Runs, name: str, world: str) -> None:
    one, other = RunFolder.open(runs.one / name), RunFolder.open(getattr(runs, world) / name)
    ours, theirs = (load_file(run.checkpoint_path("last")) for run in (one, other))
    for key, value in ours.items():
        if not key.startswith("rng/"):
            torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=2e-5, msg=f"{key} differs")
    for record, expected in zip(other.metrics.read(), one.metrics.read(), strict=True):
        for key in ("kind", "epoch", "step", "samples", "targets", "improved"):
            assert record.get(key) == expected.get(key)
        if record["kind"] == "final":
            assert record["valid"]["users"] == expected["valid"]["users"]
            assert record["test"] == expected["test"]
        else:
            assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert record["valid"] == expected["valid"]
    assert json.loads(other.protocol_path.read_text())["machine"]["processes"] == {"two": 2, "four": 4}[world]

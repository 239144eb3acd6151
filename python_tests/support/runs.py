"""Small training runs: a set of 60 users and a model of two narrow blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from recgrela import train
from recgrela.runs.folder import RunFolder

DATA = [
    "--data.synthetic_users=60",
    "--data.synthetic_items=40",
    "--data.synthetic_events=20",
    "--data.max_len=50",
]
MODEL = ["--model.num_layers=2", "--model.hidden_size=16", "--model.num_heads=2"]
TRAIN = ["--train.batch_size=128", "--train.lr=1e-3", "--train.warmup_steps=0", "--train.lr_decay=none"]
PLAIN = ["--train.tensorboard=off", "--train.device=cpu", "--train.threads=1"]


def options(output: Path, name: str, *more: str) -> list[str]:
    """A command line of `recgrela.train` for the run `output/name` of 8 steps an epoch."""
    where = [f"--train.output={output}", f"--train.name={name}"]
    return [*DATA, *MODEL, *PLAIN, *TRAIN, *where, "--train.epochs=2", *more]


def run_train(*argv: str) -> int:
    """Runs `recgrela.train` in this process and restores the number of threads."""
    threads = torch.get_num_threads()
    try:
        return train.main(argv)
    finally:
        torch.set_num_threads(threads)


def make_run(output: Path, name: str, *more: str) -> Path:
    """Trains a run and returns its folder."""
    assert run_train(*options(output, name, *more)) == 0
    return output / name


def edit_protocol(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the content of a run's protocol.json in place, and writes it with its new checksum."""
    folder = RunFolder.open(run)
    content = folder.read_protocol()
    change(content)
    folder.write_json(folder.protocol_path, content)


def assert_same_tensors(first: Path, second: Path) -> None:
    """Asserts that two safetensors files hold the same bits under the same names."""
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different, f"{first} and {second} differ in {different}"

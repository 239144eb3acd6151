from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recgrela.models import RecGRELAConfig, SequenceModel, build
from recgrela.runs import checkpoint
from recgrela.runs.state import TrainState
from recgrela.runs.tensor_file import Entry, write_tensors
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write_text

CONFIG = RecGRELAConfig(hidden_size=16, num_heads=2, num_layers=2)


def make_model(config: RecGRELAConfig = CONFIG, n_items: int = 11) -> SequenceModel:
    return build(config, n_items, 8)


def take_step(model: SequenceModel, optimizer: torch.optim.Optimizer) -> float:
    items, target = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([2, 3, 4, 5, 6])
    optimizer.zero_grad()
    loss = model.loss_packed(items, torch.tensor([0, 3, 5]), target, 3, "all")
    loss.backward()
    optimizer.step()
    return loss.item()


def make_optimizer(model: SequenceModel) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    model = make_model()
    optimizer = make_optimizer(model)
    for _ in range(3):
        take_step(model, optimizer)
    checkpoint.save(path, model, {"epoch": 3, "loss": 0.1 + 0.2}, optimizer)
    losses = [take_step(model, optimizer) for _ in range(3)]

    torch.manual_seed(99)  # other weights, other dropout
    other = make_model()
    other_optimizer = make_optimizer(other)
    assert checkpoint.load(path, other, other_optimizer) == {"epoch": 3, "loss": 0.1 + 0.2}
    assert [take_step(other, other_optimizer) for _ in range(3)] == losses
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model = make_model()
    checkpoint.save(path, model, {})
    assert all(name.startswith("model/") for name in load_file(path))
    with pytest.raises(RunError, match="contains only weights"):
        checkpoint.load(path, model, make_optimizer(model))


@pytest.mark.parametrize(
    ("config", "n_items", "message"),
    [
        (replace(CONFIG, hidden_size=32), 11, r"RecGRELA with other settings: hidden_size 16 \(here 32\)"),
        (CONFIG, 12, r"items \(with padding\) 11 \(here 12\)"),
        (replace(CONFIG, gate_activation="relu"), 11, "gate_activation silu"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, config: RecGRELAConfig, n_items: int, message: str) -> None:
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, make_model(), {})
    other = make_model(config, n_items)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(RunError, match=message):
        checkpoint.load(path, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model = make_model()
    checkpoint.save(path, model, {})
    tensors = load_file(path)
    meta = {"recgrela": _metadata(path)}
    tensors["model/norm.weight"] = torch.zeros(5)
    write(path, tensors, meta)
    with pytest.raises(RunError, match=r"norm.weight is \[5\], but \[16\] in the model"):
        checkpoint.load(path, model)
    tensors["model/norm.weight"] = torch.zeros(16, dtype=torch.float16)
    write(path, tensors, meta)
    with pytest.raises(RunError, match=r"norm.weight is torch.float16, but torch.float32 in the model"):
        checkpoint.load(path, model)
    del tensors["model/norm.weight"]
    write(path, tensors, meta)
    with pytest.raises(RunError, match="weight is missing, but"):
        checkpoint.load(path, model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its metadata is not JSON"),
        ("[]", "its metadata is not an object"),
        ('{"format": 2}', "its metadata has no model"),
        ('{"format": 2, "model": {}, "n_items": 1, "max_len": 1, "state": {}}', "no model name"),
        ('{"format": 2, "model": {"name": "x"}, "n_items": 1, "max_len": 1}', "no state"),
        (
            '{"format": 2, "model": {"name": "x"}, "n_items": true, "max_len": 1, "state": {}}',
            "n_items is True",
        ),
        ('{"format": 2, "model": {"name": "x"}, "n_items": 1, "max_len": -1, "state": {}}', "max_len is -1"),
        ('{"format": 2, "model": {"name": "x"}, "n_items": NaN, "max_len": 1, "state": {}}', "NaN is not"),
        ("[" * 100_000, "its metadata is not JSON"),
    ],
)
def test_damaged_metadata(tmp_path: Path, text: str, message: str) -> None:
    path, model = tmp_path / "best.safetensors", make_model()
    checkpoint.save(path, model, {})
    write(path, load_file(path), {"recgrela": text})
    with pytest.raises(RunError, match=f"damaged: .*{message}"):
        checkpoint.load(path, model)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rng/cpu", lambda value: value[:-1].clone(), "generator's state has a wrong size or type"),
        ("adam/norm.weight/exp_avg", None, "norm.weight is incomplete"),
        ("adam/norm.weight", None, "the optimizer's state of norm.weight is missing"),
        ("adam/norm.weight/exp_avg", lambda value: value.half(), "norm.weight does not fit the model"),
        ("adam/norm.weight/exp_avg", lambda value: value[:-1].clone(), "norm.weight does not fit the model"),
        ("adam/norm.weight/exp_avg", lambda value: value * torch.inf, "exp_avg has NaN or infinite values"),
        ("adam/norm.weight/exp_avg_sq", lambda value: value - 1, "norm.weight has a negative exp_avg_sq"),
        ("adam/norm.weight/step", lambda value: value.double(), "norm.weight does not fit the model"),
        (
            "model/norm.weight",
            lambda value: value * torch.nan,
            "model/norm.weight has NaN or infinite values",
        ),
    ],
)
def test_a_damaged_training_state_changes_nothing(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor] | None, message: str
) -> None:
    path, model = tmp_path / "last.safetensors", make_model()
    optimizer = make_optimizer(model)
    take_step(model, optimizer)
    checkpoint.save(path, model, {}, optimizer)
    tensors = load_file(path)
    for key in [key for key in tensors if key == name or key.startswith(f"{name}/")]:
        if change is None:
            del tensors[key]
        else:
            tensors[key] = change(tensors[key])
    # A file of format 1, because `write_tensors` writes no NaN.
    save_file(tensors, path, {"recgrela": _metadata(path).replace('"format": 2', '"format": 1')})
    take_step(model, optimizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RunError, match=message):
        checkpoint.load(path, model, optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    model = make_model(RecGRELAConfig(hidden_size=4, num_heads=2, num_layers=1))
    optimizer = make_optimizer(model)
    take_step(model, optimizer)
    checkpoint.save(path, model, {"epoch": 1}, optimizer)
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    for place in (*range(0, header, 17), *range(header, len(good), 97), len(good) - 1):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"last\.safetensors: "):
            checkpoint.load(path, model, optimizer)
    path.write_bytes(good)
    checkpoint.load(path, model, optimizer)


def test_a_checksum_cannot_be_left_out(tmp_path: Path) -> None:
    path, model = tmp_path / "best.safetensors", make_model()
    checkpoint.save(path, model, {})
    save_file(load_file(path), path, {"recgrela": _metadata(path)})
    with pytest.raises(RunError, match="damaged: its checksum is missing"):
        checkpoint.load(path, model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["weights", "Adam"])
def test_diverged_weights_replace_no_checkpoint(tmp_path: Path, where: str, value: float) -> None:
    path, model = tmp_path / "last.safetensors", make_model()
    optimizer = make_optimizer(model)
    take_step(model, optimizer)
    checkpoint.save(path, model, {}, optimizer)
    before = path.read_bytes()
    parameter = dict(model.named_parameters())["norm.weight"]
    with torch.no_grad():
        (parameter if where == "weights" else optimizer.state[parameter]["exp_avg"])[3] = value
    with pytest.raises(RunError, match=r"norm.weight\S* has NaN or infinite values"):
        checkpoint.save(path, model, {}, optimizer)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_state_with_wrong_keys_is_damaged() -> None:
    state = TrainState(epoch=3, total_steps=12, best_score=0.5, best_epoch=2, stale_epochs=1)
    whole, path = state.as_dict(), Path("last.safetensors")
    assert TrainState.from_dict(whole, path) == state
    for content, message in (
        (whole | {"more": 1}, "an unknown key 'more'"),
        ({key: value for key, value in whole.items() if key != "step"}, "no key 'step'"),
        (whole | {"epoch": "3"}, "epoch '3'"),
        (whole | {"epoch": True}, "epoch True"),
        (whole | {"step": -1}, "step -1"),
        (whole | {"total_steps": 10**30}, "total_steps 10000"),
        (whole | {"seconds": float("nan")}, "seconds nan"),
        (whole | {"best_score": 1.5}, "best_score 1.5"),
        (whole | {"loss_curve": [[1.5, 2.0]]}, "loss_curve"),
        (whole | {"loss_curve": [1]}, "loss_curve"),
        (whole | {"best_sha256": "x"}, "best_sha256 'x'"),
        (whole | {"best_epoch": 4}, "epoch 3 and best_epoch 4 and stale_epochs 1, which contradict"),
        (whole | {"best_score": None}, "best_score None and best_epoch 2, which contradict"),
        (whole | {"step": 20, "samples": 20, "targets": 20}, "total_steps 12 and epoch 3 and step 20"),
        (whole | {"read_step": 1}, "read_step 1 and step 0"),
        (whole | {"samples": 1}, "samples 1 and step 0"),
        (whole | {"loss_curve": [[13, 1.0]]}, r"loss_curve \[\[13, 1.0\]\] and total_steps 12"),
    ):
        with pytest.raises(RunError, match=f"last.safetensors: damaged: its state has {message}"):
            TrainState.from_dict(content, path)


def write(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, str]) -> None:
    """Writes a file with a checksum that fits."""
    write_tensors(path, [Entry.of(name, tensor) for name, tensor in tensors.items()], meta)


def _metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()["recgrela"]


class Trap:
    """An object that creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    path, trapped = tmp_path / "best.safetensors", tmp_path / "trapped"
    path.write_bytes(pickle.dumps(Trap(trapped)))
    with pytest.raises(RunError, match="not a checkpoint"):
        checkpoint.load(path, make_model())
    assert not trapped.exists()


def test_damaged_missing_and_foreign_files(tmp_path: Path) -> None:
    path, model = tmp_path / "best.safetensors", make_model()
    with pytest.raises(RunError, match="no such checkpoint"):
        checkpoint.load(path, model)
    checkpoint.save(path, model, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="damaged"):
        checkpoint.load(path, model)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="not a checkpoint of recgrela"):
        checkpoint.load(path, model)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tmp_path / "last.safetensors", make_model()
    checkpoint.save(path, model, {"epoch": 1})
    good = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="no space left on the disk; the previous file is unchanged"):
        checkpoint.save(path, model, {"epoch": 2})
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    atomic_write_text(path, "old")

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    checkpoint.save(tmp_path / "best.safetensors", make_model(), {})
    assert (tmp_path / "best.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode

"""Checkpoints in the safetensors format, which loads without running code; writes are atomic.

Tensors:   model/<name>                                the model's state
           adam/<parameter>/{step,exp_avg,exp_avg_sq}  the optimizer's state, for parameters with updates
           rng/cpu, rng/cuda                           states of the random number generators
Metadata:  "recgrela" is a JSON object with format, model (name and settings), n_items, max_len and the
           caller's state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recgrela.models import SequenceModel
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write
from recgrela.system.out_of_memory import MemoryPhase

FORMAT = 1
_KEY = "recgrela"


SMALLER = "lower model.hidden_size or model.num_layers, or raise data.min_item_events for fewer items"


@MemoryPhase("saving a checkpoint", f"{SMALLER}; earlier checkpoints are unchanged")
def save(
    path: Path, model: SequenceModel, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Write a checkpoint, replacing the file at `path`.

    Args:
        path: the file.
        model: the model; its settings are recorded too.
        state: plain values for JSON, which `load` returns.
        optimizer: if given, its state and those of the random number generators are saved, so that training
            can resume.

    Raises:
        RunError: the file cannot be written; the previous file is unchanged.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{name}/{key}"] = value
        tensors["rng/cpu"] = torch.get_rng_state()
        device = next(model.parameters()).device
        if device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    meta = {"format": FORMAT, **_identity(model), "state": dict(state)}
    on_host = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    atomic_write(path, lambda temporary: save_file(on_host, temporary, {_KEY: json.dumps(meta)}))


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint. Raises RunError if the file is missing, damaged or not a checkpoint."""
    return _read(path, tensors=False)[0]


@MemoryPhase("loading a checkpoint", "this model needs more memory")
def load(path: Path, model: SequenceModel, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Load a checkpoint into `model`, and if given into `optimizer` and the random number generators.

    Everything is checked before anything is changed.

    Returns:
        The `state` given to `save`.

    Raises:
        RunError: the file is missing or damaged, is of another model or other settings or shapes, or has no
            training state for the optimizer.
    """
    meta, tensors = _read_for(path, model)
    if optimizer is not None:
        if "rng/cpu" not in tensors:
            raise RunError(f"{path}: contains only weights; resume from last.safetensors")
        device = next(model.parameters()).device
        cuda_state = tensors.get("rng/cuda") if device.type == "cuda" else None
        _check_rng(path, tensors["rng/cpu"], torch.get_rng_state())
        if cuda_state is not None:
            _check_rng(path, cuda_state, torch.cuda.get_rng_state(device))
        _load_adam(path, _strip(tensors, "adam/"), model, optimizer)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)
        torch.set_rng_state(tensors["rng/cpu"])
    model.load_state_dict(_strip(tensors, "model/"))
    return meta["state"]


def check(path: Path, model: SequenceModel) -> None:
    """Raises RunError if `load` could not load the weights; the model is not changed."""
    _read_for(path, model)


def _read_for(path: Path, model: SequenceModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    meta, tensors = _read(path, tensors=True)
    _check_identity(path, meta, _identity(model))
    _check_shapes(path, _strip(tensors, "model/"), model.state_dict())
    return meta, tensors


def _identity(model: SequenceModel) -> dict[str, Any]:
    settings = asdict(model.config)
    identity = {"model": settings, "n_items": model.n_items, "max_len": model.max_len}
    return json.loads(json.dumps(identity))  # as values read from a file


def _read(path: Path, tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise RunError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_KEY)
            values = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: not a checkpoint, or damaged: {error}") from error
    if text is None:
        raise RunError(f"{path}: a safetensors file, but not a checkpoint of recgrela")
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise RunError(f"{path}: damaged: its metadata is not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise RunError(f"{path}: damaged: its metadata is not an object")
    if meta.get("format") != FORMAT:
        raise RunError(
            f"{path}: checkpoint format {meta.get('format')}, but this version reads format {FORMAT}"
        )
    for key, kind in {"model": dict, "n_items": int, "max_len": int, "state": dict}.items():
        if not isinstance(meta.get(key), kind):
            raise RunError(f"{path}: damaged: its metadata has no {key}")
    if "name" not in meta["model"]:
        raise RunError(f"{path}: damaged: its metadata has no model name")
    return meta, values


def _check_identity(path: Path, meta: dict[str, Any], own: dict[str, Any]) -> None:
    theirs = meta["model"] | {"items (with padding)": meta["n_items"], "max_len": meta["max_len"]}
    ours = own["model"] | {"items (with padding)": own["n_items"], "max_len": own["max_len"]}
    if theirs["name"] != ours["name"]:
        raise RunError(f"{path}: a checkpoint of {theirs['name']}, but the model is {ours['name']}")
    # A setting on one side only comes from another version; then only names and shapes of tensors must agree.
    different = [key for key in ours if key in theirs and theirs[key] != ours[key]]
    if different:
        listed = ", ".join(f"{key} {theirs[key]} (here {ours[key]})" for key in different)
        raise RunError(f"{path}: a checkpoint of {ours['name']} with other settings: {listed}")


def _check_shapes(path: Path, weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name in [*own, *weights]:
        theirs, ours = (list(where[name].shape) if name in where else "missing" for where in (weights, own))
        if theirs != ours:
            raise RunError(f"{path}: does not fit the model: {name} is {theirs}, but {ours} in the model")


def _check_rng(path: Path, theirs: Tensor, ours: Tensor) -> None:
    if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
        raise RunError(f"{path}: damaged: the random number generator's state has a wrong size or type")


def _load_adam(
    path: Path, tensors: dict[str, Tensor], model: SequenceModel, optimizer: torch.optim.Optimizer
) -> None:
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        states.setdefault(parameter, {})[key] = value
    parameters = dict(model.named_parameters())
    for name, values in states.items():
        if values.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise RunError(f"{path}: damaged: the optimizer's state of {name} is incomplete")
        for key, value in values.items():
            if name not in parameters or (key != "step" and value.shape != parameters[name].shape):
                raise RunError(f"{path}: the optimizer's state of {name} does not fit the model")
    order = [name for name, _ in model.named_parameters()]
    content = optimizer.state_dict()
    content["state"] = {order.index(name): values for name, values in states.items()}
    optimizer.load_state_dict(content)  # also moves the state to the device of its parameter


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

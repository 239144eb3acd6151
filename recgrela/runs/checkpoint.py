"""Checkpoints in the safetensors format, which loads without running code; writes are atomic.

Tensors:   model/<name>                                the model's state
           adam/<parameter>/{step,exp_avg,exp_avg_sq}  the optimizer's state, for parameters with updates
           rng/cpu, rng/cuda                           states of the random number generators
           rng/<rank>/cpu, rng/<rank>/cuda             those of the other processes
Metadata:  "recgrela" is a JSON object with format, model (name and settings), n_items, max_len and the
           caller's state; "sha256" is the checksum of the file (see `tensor_file`).

Format 1, of earlier versions, has no checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recgrela.models import SequenceModel
from recgrela.models.base import PER_ITEM
from recgrela.parallel.gathering import each_piece
from recgrela.parallel.processes import LostProcess, Processes
from recgrela.runs.tensor_file import (
    Content,
    Entry,
    NotFinite,
    in_file_order,
    is_finite,
    read_metadata,
    read_tensors,
    write_tensors,
)
from recgrela.runs.values import check_count, read_object
from recgrela.system.errors import RunError
from recgrela.system.out_of_memory import MemoryPhase

FORMAT = 2
_KEY = "recgrela"
_ADAM = {"step", "exp_avg", "exp_avg_sq"}


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the CPU's random number generator and of that of a GPU, as uint8 tensors on the CPU."""
    state = {"cpu": torch.get_rng_state()}
    return state if device.type != "cuda" else state | {"cuda": torch.cuda.get_rng_state(device)}


SMALLER = "lower model.hidden_size or model.num_layers, or raise data.min_item_events for fewer items"


@MemoryPhase("saving a checkpoint", f"{SMALLER}; earlier checkpoints are unchanged")
def save(
    path: Path,
    model: SequenceModel,
    state: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    processes: Processes | None = None,
) -> str:
    """Write a checkpoint, replacing the file at `path`.

    Args:
        path: the file.
        model: the model; its settings are recorded too.
        state: plain values for JSON, which `load` returns.
        optimizer: if given, its state and those of the random number generators are saved, so that training
            can resume.
        processes: the processes that train the model, all of which call this function. The first one writes,
            and takes the rows of a sharded item table from the others.

    Returns:
        The checksum of the file, which identifies the checkpoint.

    Raises:
        NotFinite: weights or the optimizer's state are not finite; the previous file is unchanged.
        RunError: the file cannot be written; the previous file is unchanged.
    """
    processes, rows = processes or Processes(), model.shards
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{name}/{key}"] = value
        for kind, value in random_state(next(model.parameters()).device).items():
            for rank, each in enumerate(processes.gather(value)):
                tensors[_rng_name(rank, kind)] = each
    meta = {"format": FORMAT, **_identity(model), "state": dict(state)}
    entries, sharded = [], []
    for name, value in sorted(tensors.items()):
        if rows is None or not _is_per_item(name):
            entries.append(Entry.of(name, value))
        else:
            shape = (rows.n_items, *value.shape[1:])
            sharded.append(Entry(name, value.dtype, shape, each_piece(value, rows)))

    def exchange() -> None:
        for entry in in_file_order(sharded):
            for _ in entry.chunks:
                pass

    def write() -> str:
        try:
            return write_tensors(path, entries + sharded, {_KEY: json.dumps(meta)})
        except LostProcess:
            raise
        except BaseException:
            exchange()  # the others are sending
            raise

    return processes.on_first(write, exchange)


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, without a look at its tensors.

    Raises:
        RunError: the file is missing, not a checkpoint, or its metadata is damaged.
    """
    return _meta(path, read_metadata(path, "checkpoint"))


def read_checksum(path: Path) -> str | None:
    """The checksum that a checkpoint records, None in format 1. Raises RunError as `read_meta` does."""
    content = read_metadata(path, "checkpoint")
    _meta(path, content)
    return content.checksum


@MemoryPhase("loading a checkpoint", "this model needs more memory")
def load(
    path: Path, model: SequenceModel, optimizer: torch.optim.Optimizer | None = None, rank: int = 0
) -> dict[str, Any]:
    """Load a checkpoint into `model`, and if given into `optimizer` and the random number generators.

    Everything is checked before anything is changed: the checksum, names, shapes and dtypes, and that
    weights and the optimizer's state are finite.

    Args:
        path: the file.
        model: the model.
        optimizer: the optimizer, if training resumes.
        rank: the process whose random states are loaded; those of a process that the file does not have are
            not changed.

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
        names = {kind: _rng_name(rank, kind) for kind in random_state(device)}
        states = {kind: tensors[name] for kind, name in names.items() if name in tensors}
        for kind, own in random_state(device).items():
            _check_rng(path, states.get(kind, own), own)
        _load_adam(path, _strip(tensors, "adam/"), model, optimizer)
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], device)
        if "cpu" in states:
            torch.set_rng_state(states["cpu"])
    model.load_state_dict(_strip(tensors, "model/"))
    return meta["state"]


def check(path: Path, model: SequenceModel) -> dict[str, Any]:
    """The `state` given to `save`; `model` is not changed. Raises RunError if `load` could not load it."""
    return _read_for(path, model)[0]["state"]


def _rng_name(rank: int, kind: str) -> str:
    return f"rng/{rank}/{kind}" if rank else f"rng/{kind}"


def _is_per_item(name: str) -> bool:
    """Whether a tensor of a checkpoint has a row for each item."""
    kind, _, rest = name.partition("/")
    parameter, _, key = rest.partition("/")
    return parameter in PER_ITEM and (kind == "model" or key in ("exp_avg", "exp_avg_sq"))


def _read_for(path: Path, model: SequenceModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    wanted = {}
    if model.shards is not None:
        names = [f"model/{name}" for name in PER_ITEM]
        names += [f"adam/{name}/{key}" for name in PER_ITEM for key in ("exp_avg", "exp_avg_sq")]
        wanted = dict.fromkeys(names, model.shards.slice)
    content = read_tensors(path, "checkpoint", wanted)
    meta, tensors = _meta(path, content), content.tensors
    assert tensors is not None
    _check_identity(path, meta, _identity(model))
    _check_shapes(path, _strip(tensors, "model/"), model.state_dict())
    for name, value in tensors.items():
        if not is_finite(value):
            raise NotFinite(path, name)
    return meta, tensors


def _identity(model: SequenceModel) -> dict[str, Any]:
    settings = asdict(model.config)
    identity = {"model": settings, "n_items": model.n_items, "max_len": model.max_len}
    return json.loads(json.dumps(identity))  # as values read from a file


def _meta(path: Path, content: Content) -> dict[str, Any]:
    if _KEY not in content.metadata:
        raise RunError(f"{path}: a safetensors file, but not a checkpoint of recgrela")
    meta = read_object(path, content.metadata[_KEY], "its metadata")
    if meta.get("format") not in (1, FORMAT):
        raise RunError(
            f"{path}: checkpoint format {meta.get('format')}, but this version reads formats up to {FORMAT}"
        )
    if content.metadata.keys() != {_KEY} or (content.checksum is None) != (meta["format"] == 1):
        raise RunError(f"{path}: damaged: its checksum is missing")
    for key, kind in {"model": dict, "n_items": int, "max_len": int, "state": dict}.items():
        if not isinstance(meta.get(key), kind):
            raise RunError(f"{path}: damaged: its metadata has no {key}")
    for key in ("n_items", "max_len"):
        check_count(path, key, meta[key], 1)
    if "name" not in meta["model"]:
        raise RunError(f"{path}: damaged: its metadata has no model name")
    return meta


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
        if weights[name].dtype != own[name].dtype:
            raise RunError(
                f"{path}: does not fit the model: {name} is {weights[name].dtype}, but {own[name].dtype} in "
                "the model"
            )


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
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if unknown := states.keys() - parameters.keys():
        raise RunError(f"{path}: the optimizer's state of {min(unknown)} does not fit the model")
    # Every step updates every parameter, so all of them have a state, or none before the first step.
    if states and (missing := parameters.keys() - states.keys()):
        raise RunError(f"{path}: damaged: the optimizer's state of {min(missing)} is missing")
    for name, values in states.items():
        if values.keys() != _ADAM:
            raise RunError(f"{path}: damaged: the optimizer's state of {name} is incomplete")
        own = parameters[name]
        for key, value in values.items():
            shape, dtype = ((), torch.float32) if key == "step" else (own.shape, own.dtype)
            if value.shape != shape or value.dtype != dtype:
                raise RunError(f"{path}: the optimizer's state of {name} does not fit the model")
            if key != "exp_avg" and value.numel() and value.min() < 0:
                raise RunError(f"{path}: damaged: the optimizer's state of {name} has a negative {key}")
    order = [name for name, _ in model.named_parameters()]
    content = optimizer.state_dict()
    content["state"] = {order.index(name): values for name, values in states.items()}
    optimizer.load_state_dict(content)  # also moves the state to the device of its parameter


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

"""protocol.json: the conditions of a run, recorded so that its numbers can be compared and repeated."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from recgrela import _C
from recgrela.data import Interactions, TrainBatches
from recgrela.evaluation.metrics import NAMES
from recgrela.runs.items import ids_sha256
from recgrela.settings.data import DataConfig
from recgrela.settings.run import RunConfig, preset_config
from recgrela.settings.train import TrainConfig
from recgrela.system.device import device_name

EARLY_STOPPING_METRIC = "NDCG@10"


def describe(
    config: RunConfig,
    data: Interactions,
    batches: TrainBatches,
    device: torch.device,
    max_tokens: int,
    processes: int = 1,
) -> dict[str, Any]:
    """The content of protocol.json, as plain values.

    Counts of users and items include the padding id, as in the published tables.

    Args:
        config: settings.
        data: interactions.
        batches: training batches.
        device: device of the first process.
        max_tokens: maximum number of item slots in one pass.
        processes: number of processes that share the batches.
    """
    train, settings = config.train, fixed_settings(config)
    if train.lr_decay != "none":
        settings["train.epochs"] = train.epochs  # the end of the first schedule, even if the run is extended
    if train.objective == "last":
        samples = "one target per prefix: up to max_len items predict the next"
    else:
        samples = (
            "windows of up to max_len items, cut at the end of a batch; each position predicts the next; "
            "cut points change every epoch"
        )
    has_target = "three events or more" if data.split is None else "a target"
    return {
        "created": now(),
        "preset": config.preset,
        "changed_from_preset": changed_from_preset(config),
        "model": asdict(config.model),
        "settings": settings,
        "data": {"sha256": data.sha256, "packed_sha256": packed_sha256(data), **data.description},
        "items": {"ids_sha256": ids_sha256(data.item_ids)},
        "split": describe_split(config.data, data),
        "max_len": config.data.max_len,
        "eval_max_len": config.data.history_len,
        "training": {
            "objective": train.objective,
            "samples": samples,
            "targets_per_epoch": batches.num_targets,
            "batch_size": train.batch_size,
            "pieces": batches.partition.pieces,
            "max_tokens_a_pass": max_tokens,
            "loss": describe_loss(train),
            "optimiser": f"Adam, lr {train.lr}, betas 0.9 and 0.999, eps 1e-8; no weight decay, no clipping",
            "schedule": f"warm-up over {train.warmup_steps} steps, then decay: {train.lr_decay}",
            "precision": "bfloat16 autocast" if train.amp else "float32",
            "early_stopping": f"valid {EARLY_STOPPING_METRIC} (unmasked) rounded to 4 decimals; an equal "
            f"score is an improvement; stop after more than {train.patience} epochs without one",
            "test": "once, with the weights of the best epoch",
        },
        "evaluation": {
            "users": f"all with {has_target}"
            if (users := config.data.eval_users) is None
            else f"at most {users} with {has_target}, chosen by a fixed permutation of the user rows",
            "ranking": "full, over all items except padding",
            "masking": "unmasked: all items are ranked; masked: items of the user's history except "
            "the target are removed",
            "ties": "against the model: an item with the target's score ranks before it; ties_at_cut is the "
            "number of users whose metrics depend on this rule",
            "metrics": list(NAMES),
            "precision": "float32",
        },
        "seeds": {"train": train.seed, "weights, dropout, sample order": "all from train"},
        "versions": {
            "recgrela": _C.version,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "cuda": torch.version.cuda,
        },
        "machine": {
            "device": str(device),
            "device_name": device_name(device),
            "processes": processes,
            "threads": torch.get_num_threads(),
            "cpu_kernels": _C.cpu_isa(),
            "platform": platform.platform(),
        },
    }


def describe_split(config: DataConfig, data: Interactions) -> str:
    """The split in words; the section `data` has its times and counts."""
    facts = data.description["split"]
    if config.split == "leave_one_out":
        return (
            "leave one out per user: the last event is test, the second last valid; users with 1 or 2 events "
            "are used for training only"
        )
    if config.split == "time":
        valid, test = (facts[f"{split}_from_date"] or facts[f"{split}_from"] for split in ("valid", "test"))
        phases = f"by time, for all users: events from {valid} on are valid, events from {test} on test"
    else:
        phases = "by files: one of training events, one of valid events, one of test events"
    rule = {"all": "every one", "random": "a random one"}.get(config.target_rule, f"the {config.target_rule}")
    return (
        f"{phases}; targets: {rule} of a user's held-out events that have an event of the user before them, "
        "except items without a training event (cold targets); all events before a target are its history"
    )


def describe_loss(train: TrainConfig) -> str:
    """The training loss in words."""
    if train.loss == "softmax":
        smoothing = f", label smoothing {train.label_smoothing}" if train.label_smoothing else ""
        return f"cross-entropy over every row of the item table, the padding row included{smoothing}"
    if train.loss == "sampled_softmax":
        return f"sampled softmax with {train.negatives} negatives per pass, corrected by log of probability"
    return f"gBCE with {train.negatives} negatives per pass, t {train.gbce_t}"


def changed_from_preset(config: RunConfig) -> dict[str, Any]:
    """The settings, by dotted key, that differ from the preset and affect results."""
    preset = preset_config(config.preset, type(config.model)).flat()
    options = config.options
    return {
        key: value
        for key, value in config.flat().items()
        if options[key].affects.results and value != preset[key]
    }


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings, by dotted key, that a resumed run must keep."""
    resumable = config.resumable()
    return {key: value for key, value in config.flat().items() if key not in resumable}


def packed_sha256(data: Interactions) -> str:
    """Hash of the filtered and ordered events."""
    return data.packed_sha256()


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The properties of machine and software that affect the rounding of a run."""
    return {
        "device": str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_kernels": _C.cpu_isa(),
    }


def environments(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The `environment` of each part of a run, from its protocol.json: the start, then each resumption."""
    machine = content["machine"]
    first = machine | {"torch": content["versions"].get("torch")}
    keys = ("device", "processes", "threads", "torch", "cpu_kernels")
    parts = [{"processes": 1} | part for part in (first, *content.get("resumed", []))]  # once not recorded
    return [{key: part.get(key) for key in keys} for part in parts]


def resumption(
    config: RunConfig, step: int, device: torch.device, processes: int, pieces: int
) -> dict[str, Any]:
    """An entry of the list "resumed": the step, limits, pieces and environment of a resumed run."""
    limits = {key: getattr(config.train, key) for key in ("epochs", "max_steps", "patience")}
    return {"time": now(), "step": step, **limits, "pieces": pieces, **environment(device, processes)}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

"""protocol.json: what a reader needs to know to trust, compare or repeat a run's numbers."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from recgrela import _C
from recgrela.config import RunConfig
from recgrela.data import Interactions, TrainBatches
from recgrela.metrics import NAMES
from recgrela.runtime import describe_device

EARLY_STOPPING_METRIC = "NDCG@10"


def describe(
    config: RunConfig, data: Interactions, batches: TrainBatches, device: torch.device, max_tokens: int
) -> dict[str, Any]:
    """The content of protocol.json, of plain values.

    Counts of users and items include the padding id, as the published tables do.
    """
    train = config.train
    if train.objective == "last":
        samples = "one target per prefix: up to max_len items predict the next"
    else:
        samples = (
            "windows of up to max_len items, each position predicts its next; cut points move every epoch"
        )
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "preset": config.preset,
        "data": {"sha256": data.sha256, **data.description},
        "split": "leave one out per user: last event test, second last valid; users of 1 or 2 only train",
        "max_len": config.data.max_len,
        "training": {
            "objective": train.objective,
            "samples": samples,
            "targets_per_epoch": batches.num_targets,
            "batch_size": train.batch_size,
            "max_tokens_a_pass": max_tokens,
            "loss": "cross-entropy over every row of the item table, the padding row included",
            "optimiser": f"Adam, lr {train.lr}, betas 0.9 and 0.999, eps 1e-8; no decay, clipping, schedule",
            "precision": "bfloat16 autocast" if train.amp else "float32",
            "early_stopping": f"valid {EARLY_STOPPING_METRIC} (unmasked) rounded to 4 decimals; an equal "
            f"score is an improvement; stop at more than {train.patience} epochs without one",
            "test": "once, on the best epoch's weights",
        },
        "evaluation": {
            "ranking": "full, over all items but the padding column",
            "masking": "unmasked: every item is ranked; masked: items of the user's history are removed, the "
            "target stays",
            "ties": "against the model: an item with the target's score ranks before it; ties_at_cut counts "
            "the users whose figures depend on that",
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
            "device_name": describe_device(device),
            "threads": torch.get_num_threads(),
            "cpu_kernels": _C.cpu_isa(),
            "platform": platform.platform(),
        },
    }

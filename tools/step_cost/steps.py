"""The training steps whose launches and bytes are counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from recgrela.data import Batch, DataConfig, Interactions, TrainBatches, load
from recgrela.models import RecGRELAConfig, build
from recgrela.nn import RotaryTable
from recgrela.settings.train import Objective, TrainConfig
from recgrela.training.losses import FullSoftmax
from recgrela.training.step import TrainStep
from tools.step_cost.counting import Call, Counter
from tools.step_cost.fake_cuda import autocast_is_available

MAX_LEN = 200


@dataclass(frozen=True)
class Setting:
    """A training step of the model of 4 blocks, D 64 and 4 heads.

    Attributes:
        model: settings of the model.
        objective: "last" or "all".
        batch_size: targets of a step.
        amp: whether rows are bfloat16.
    """

    model: RecGRELAConfig
    objective: Objective
    batch_size: int
    amp: bool


PUBLISHED = RecGRELAConfig(mode="bidirectional", padding="attend")
CAUSAL = RecGRELAConfig(mode="causal")
SETTINGS = {
    "last bf16": Setting(PUBLISHED, "last", 2048, True),
    "last fp32": Setting(PUBLISHED, "last", 2048, False),
    "all 65,536 bf16": Setting(CAUSAL, "all", 65536, True),
    "all 3,200 bf16": Setting(CAUSAL, "all", 3200, True),
    "all 3,200 fp32": Setting(CAUSAL, "all", 3200, False),
}


def load_data() -> Interactions:
    """A synthetic set with as many users, items and events as MovieLens-1M."""
    return load(DataConfig(synthetic_users=6040, synthetic_items=3416, synthetic_events=165))


def keep_rotary_tables(model: nn.Module) -> None:
    """Fills the caches of rotary tables, which do not keep fake tensors by themselves."""
    like = next(model.parameters())
    for module in model.modules():
        rotary = getattr(module, "rotary", None)
        if isinstance(rotary, RotaryTable):
            rotary._tables[0] = rotary(MAX_LEN, like)


def count_step(setting: Setting, data: Interactions) -> list[Call]:
    """The calls of one training step: forward, backward and Adam, on tensors without data."""
    batches = TrainBatches(data, setting.objective, MAX_LEN, setting.batch_size, 0)
    batch: Batch = next(iter(batches.epoch(0)))
    config = TrainConfig(objective=setting.objective, batch_size=setting.batch_size, amp=setting.amp)
    with FakeTensorMode(), autocast_is_available():
        with torch.device("cuda"):
            model = build(setting.model, data.n_items, MAX_LEN)
            tensors = {
                name: torch.empty(getattr(batch, name).shape, dtype=torch.int64)
                for name in ("items", "cu_seqlens", "target", "users")
            }
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        step = TrainStep(model, optimizer, FullSoftmax(), config, max_tokens=1 << 40)
        on_device = replace(batch, **tensors)
        keep_rotary_tables(model)
        step(on_device, 1e-3)  # makes Adam's state
        with Counter() as counter:
            step(on_device, 1e-3)
    return counter.calls

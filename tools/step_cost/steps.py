"""Counts the calls of a training step on tensors without data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from benchmarks.steps import DATA, MAX_LEN, Setting
from recgrela.data import Interactions, TrainBatches, load
from recgrela.models import build
from recgrela.models.capture import filling_for
from recgrela.nn import RotaryTable
from recgrela.training.losses import FullSoftmax
from recgrela.training.step import TrainStep
from tools.step_cost.counting import Call, Counter
from tools.step_cost.fake_cuda import without_gpu
from tools.step_cost.memory import Memory, PeakMemory, bytes_of


@dataclass(frozen=True)
class Count:
    """The calls of a step in order, and its memory."""

    calls: list[Call]
    memory: Memory


def load_data() -> Interactions:
    return load(DATA)


def keep_rotary_tables(model: nn.Module) -> None:
    """Fills the caches of rotary tables, which do not keep fake tensors by themselves."""
    like = next(model.parameters())
    for module in model.modules():
        rotary = getattr(module, "rotary", None)
        if isinstance(rotary, RotaryTable):
            rotary._tables[0] = rotary(MAX_LEN, like)


def count_step(setting: Setting, data: Interactions) -> Count:
    """Counts a forward, a backward and an Adam step, on a batch that is filled for CUDA graphs."""
    config = setting.run_config("cuda").train
    batches = TrainBatches(data, setting.objective, MAX_LEN, setting.batch_size, 0)
    batch = next(iter(batches.epoch(0)))
    with FakeTensorMode(allow_non_fake_inputs=True), without_gpu():
        with torch.device("cuda"):
            model = build(setting.model, data.n_items, MAX_LEN)
            tensors = {
                name: torch.empty(getattr(batch, name).shape, dtype=torch.int64)
                for name in ("items", "cu_seqlens", "target", "users")
            }
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        step = TrainStep(model, optimizer, FullSoftmax(), config, max_tokens=1 << 40)
        filling = filling_for(model, setting.objective, batches.max_seqlen)
        on_device = replace(batch, **tensors)
        keep_rotary_tables(model)

        def take() -> None:
            items, cu_seqlens, target, *lengths = filling(on_device)
            step.add_gradients(items, cu_seqlens, target, *(lengths or [None]), filling.max_seqlen)
            step.update()

        take()  # makes Adam's state
        with PeakMemory() as memory, Counter() as counter:
            take()
        state = [x for values in optimizer.state.values() for x in values.values()]
        resident = bytes_of([*model.parameters(), *model.buffers(), *state])
    return Count(counter.calls, Memory(resident, memory.peak, memory.operator))

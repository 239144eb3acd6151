"""Recorded steps: the same bits as the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.models.forms import N_ITEMS, make
from recgrela.inference.captured import MAX_BATCH, CapturedStep


class OperatorNames(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


CARRYING = ["RecGRELA", "LRURec", "Mamba4Rec", "RecBLR"]


@pytest.mark.parametrize("form", CARRYING)
@pytest.mark.parametrize("batch", [1, 3, MAX_BATCH, MAX_BATCH + 1])
def test_recorded_steps_equal_the_models(form: str, batch: int) -> None:
    model = make(form, torch.float32)
    step, own, other = CapturedStep(model), model.init_state(batch), model.init_state(batch)
    for seed in range(4):
        items = torch.randint(1, N_ITEMS, (batch,), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(step(items, other), model.step(items, own))
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_a_recorded_step_of_recgrela_is_an_operator_for_each_block() -> None:
    model = make("RecGRELA", torch.float32)
    step, state, items = CapturedStep(model), model.init_state(1), torch.tensor([4])
    step.warm_up(range(1, 2))
    with OperatorNames() as called:
        step(items, state)
    blocks = ["recgrela.rela_block_step"] * len(model.blocks)
    assert called.names == ["recgrela.embedding", *blocks, "aten.copy_", "aten.add_"]


@pytest.mark.parametrize("form", CARRYING)
def test_changed_weights_are_used(form: str) -> None:
    model = make(form, torch.float32)
    step, items = CapturedStep(model), torch.tensor([4])
    step.warm_up(range(1, 2))
    before = step(items, model.init_state(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    after = step(items, model.init_state(1))
    assert torch.equal(after, model.step(items, model.init_state(1)))
    assert not torch.equal(after, before)


def test_a_state_of_another_size_is_refused() -> None:
    model = make("RecGRELA", torch.float32)
    step = CapturedStep(model)
    step.warm_up(range(1, 2))
    with pytest.raises(ValueError, match="do not fit states of 2 users"):
        step(torch.tensor([1]), model.init_state(2))
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        model.train()
        step(torch.tensor([1]), model.init_state(1))


def test_models_with_windows_run_as_they_are() -> None:
    model = make("SASRec", torch.float32)
    step, own, other = CapturedStep(model), model.init_state(2), model.init_state(2)
    items = torch.tensor([3, 5])
    assert torch.equal(step(items, other), model.step(items, own))

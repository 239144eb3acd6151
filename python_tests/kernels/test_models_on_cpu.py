"""Whole models on the CUDA kernels, which the SIMT host runs: the loss and all gradients in training mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.models.forms import CAUSAL, FORMS, MAX_LEN, N_ITEMS, packed
from python_tests.support.tensors import assert_close
from recgrela.models import build

SIZES = {"hidden_size": 32, "inner_size": 64}
OPS_OF_EVERY_MODEL = {"add_norm", "embedding", "linear", "linear_cross_entropy"}


class Calls(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


def results(form: str, objective: str) -> tuple[dict[str, Tensor], set[str]]:
    """The loss and the gradients of a step with dropout, and the operators that ran."""
    torch.manual_seed(1)
    config = FORMS[form]
    config = replace(config, **{key: value for key, value in SIZES.items() if hasattr(config, key)})
    model = build(config, N_ITEMS, MAX_LEN)
    items, cu_seqlens, longest = packed()
    target = items.flip(0) if objective == "all" else torch.tensor([3, 5, 7, 9])
    with Calls() as calls:
        loss = model.loss_packed(items, cu_seqlens, target, longest, objective)
        loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach()}, calls.names


@pytest.mark.parametrize(
    "form, objective", [(form, "last") for form in FORMS] + [(form, "all") for form in CAUSAL]
)
def test_a_step_on_the_kernels(simt: Any, form: str, objective: str) -> None:
    """Dropout draws the same on every device, so that steps with it can be compared."""
    expected, _ = results(form, objective)
    with simt():
        got, names = results(form, objective)
    assert got.keys() == expected.keys()
    largest = max(x.abs().max().item() for x in expected.values())
    for name, value in expected.items():
        assert_close(name, value, got[name], 1e-4, scale=1e-3 * largest)
    ours = {name.removeprefix("recgrela_simt::") for name in names if name.startswith("recgrela_simt")}
    assert ours >= OPS_OF_EVERY_MODEL | (set() if form.startswith("Echo") else {"mlp"})

"""Whole models on the CUDA kernels, which the SIMT host runs: the loss and all gradients in training mode."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.models.forms import CAUSAL, FORMS, MAX_LEN, N_ITEMS, packed
from python_tests.support.tensors import assert_close
from recgrela.models import build
from recgrela.ops import checks

SIZES = {"hidden_size": 32, "inner_size": 64}
OPS_OF_EVERY_MODEL = {"add_norm", "embedding", "linear", "linear_cross_entropy"}


class Calls(TorchDispatchMode):
    """Collects the names of the operators that run, and of those with bfloat16 operands or products."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.half: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function._schema.name.removeprefix("recgrela_simt::")
        self.names.add(name)
        if any((x.dtype if isinstance(x, Tensor) else x) is torch.bfloat16 for x in args):
            self.half.add(name)
        return function(*args, **(kwargs or {}))


def results(
    form: str, objective: str, amp: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], Calls]:
    """The loss and the gradients of a step with dropout, for parameters in `dtype`, and its calls."""
    torch.manual_seed(1)
    config = FORMS[form]
    config = replace(config, **{key: value for key, value in SIZES.items() if hasattr(config, key)})
    model = build(config, N_ITEMS, MAX_LEN).to(dtype)
    items, cu_seqlens, longest = packed()
    target = items.flip(0) if objective == "all" else torch.tensor([3, 5, 7, 9])
    with Calls() as calls:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = model.loss_packed(items, cu_seqlens, target, longest, objective)
        loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach()}, calls


def networks_of(form: str) -> set[str]:
    """The operators of a model's MLPs."""
    if form.startswith("RecGRELA"):
        return {"mlp_block", "mlp_block_backward"}
    return set() if form.startswith("Echo") else {"mlp", "mlp_backward"}


@pytest.mark.parametrize(
    "form, objective", [(form, "last") for form in FORMS] + [(form, "all") for form in CAUSAL]
)
def test_a_step_on_the_kernels(simt: Any, form: str, objective: str) -> None:
    """Dropout draws the same on every device, so that steps with it can be compared."""
    expected, _ = results(form, objective)
    with simt():
        got, calls = results(form, objective)
    assert got.keys() == expected.keys()
    largest = max(x.abs().max().item() for x in expected.values())
    for name, value in expected.items():
        assert_close(name, value, got[name], 1e-4, scale=1e-3 * largest)
    assert calls.names >= OPS_OF_EVERY_MODEL | networks_of(form)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_in_bfloat16(simt: Any, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast converts rows as on a GPU; parameters and their gradients stay float32."""
    expected, _ = results(form, "last")
    for module in (checks, *map(importlib.import_module, ("recgrela.ops.linear", "recgrela.ops.mlp"))):
        monkeypatch.setattr(module, "has_half_kernels", lambda device_type: True)
    with simt():
        got, calls = results(form, "last", amp=True)
    assert got.keys() == expected.keys()
    largest = max(x.abs().max().item() for x in expected.values())
    for name, value in expected.items():
        assert got[name].dtype == torch.float32
        assert_close(name, value, got[name], 5e-2, scale=0.2 * largest)
    assert calls.half >= {"linear", "linear_cross_entropy"}
    if form.startswith("RecGRELA"):
        assert calls.half >= {"gated_rela", "gated_rela_last", "gated_rela_last_backward", "mlp_block"}
        # All projections, unless an option adds some or leaves some out.
        fits = FORMS[form].input_projection and not FORMS[form].value_projection
        assert fits == ("rela_projections" in calls.names) == ("add_norm" not in calls.names)
    else:
        assert "add_norm" in calls.half


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("RecGRELA")])
def test_a_step_of_a_model_in_bfloat16(simt: Any, form: str) -> None:
    """The residual stream of a model with bfloat16 parameters is bfloat16 between the kernels."""
    expected, _ = results(form, "last")
    with simt():
        got, calls = results(form, "last", dtype=torch.bfloat16)
    assert got.keys() == expected.keys()
    largest = max(x.abs().max().item() for x in expected.values())
    for name, value in expected.items():
        assert_close(name, value, got[name].float(), 5e-2, scale=0.2 * largest)
    assert calls.names >= {"rela_projections", "gated_rela", "gated_rela_last", "mlp_block"}

"""How a model is called: dtypes, inference mode, export, and bad operands."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from python_tests.models.forms import TARGET, make, packed
from python_tests.support.tensors import assert_close
from recgrela.models import RecGRELAConfig, build
from recgrela.system.errors import ConfigError

SMALL = RecGRELAConfig(hidden_size=16, num_heads=2, num_layers=2)


def test_converting_to_float64_keeps_exact_angles() -> None:
    torch.manual_seed(0)
    model, batch = build(SMALL, 30, 12).eval(), packed([12, 3])
    model.score_packed(*batch)  # makes the float32 table
    converted = model.double().score_packed(*batch)
    torch.manual_seed(0)
    fresh = build(SMALL, 30, 12).double().eval()
    assert torch.equal(converted, fresh.score_packed(*batch))


@pytest.mark.parametrize("form", ["RecGRELA", "SASRec", "LinRec", "EulerFormer", "Mamba4Rec", "SIGMA"])
def test_weights_in_half_precision(form: str) -> None:
    """The other models have an operation that PyTorch does not compute in bfloat16."""
    half = make(form, torch.float32).bfloat16()
    wide = make(form, torch.float32)
    wide.load_state_dict(half.state_dict())
    items, cu_seqlens, longest = packed()
    scores, expected = (model.score_packed(items, cu_seqlens, longest) for model in (half, wide))
    assert scores.dtype == torch.bfloat16
    assert_close("scores", expected, scores.float(), 0.03)
    half.train().loss_packed(items, cu_seqlens, TARGET, longest).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in half.parameters())


def test_training_after_inference_mode() -> None:
    model, (items, cu_seqlens, longest) = build(SMALL, 30, 12), packed([12, 3])
    with torch.inference_mode():
        model.score_packed(items, cu_seqlens, longest)
    model.loss_packed(items, cu_seqlens, torch.tensor([1, 2]), longest).backward()


def test_exports_and_still_runs() -> None:
    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build(SMALL, 30, 12).eval()

        def forward(self, items: Tensor, cu_seqlens: Tensor) -> Tensor:
            return self.model.score_packed(items, cu_seqlens, 12)

    module, (items, cu_seqlens, _) = Scores(), packed([12, 3])
    exported = torch.export.export(module, (items, cu_seqlens))
    scores = module(items, cu_seqlens)
    assert type(scores) is Tensor
    assert_close("scores", scores, exported.module()(items, cu_seqlens), 1e-6)


def test_bad_operands() -> None:
    model, seq = build(SMALL, 30, 20).eval(), torch.randint(1, 30, (2, 5))
    with pytest.raises(ValueError, match=r"lengths \[B\]"):
        model.score(seq, torch.tensor([5]))
    with pytest.raises(ValueError, match=r"lengths must be 1 \.\. 5, got 0"):
        model.score(seq, torch.tensor([5, 0]))
    with pytest.raises(ValueError, match=r"item ids must be 0 \.\. 29, got .* 30"):
        model.score(torch.full((2, 5), 30), torch.tensor([5, 2]))
    with pytest.raises(ValueError, match="target must be"):
        model.loss(seq, torch.tensor([5, 2]), torch.zeros(2, 4, dtype=torch.int64))
    bidirectional = build(replace(SMALL, mode="bidirectional"), 30, 20)
    with pytest.raises(ConfigError, match="objective: this RecGRELA cannot train on 'all'; expected last"):
        bidirectional.loss(seq, torch.tensor([5, 2]), seq)
    for n_items, max_len in ((1, 20), (30, 0)):
        with pytest.raises(ConfigError):
            build(SMALL, n_items, max_len)

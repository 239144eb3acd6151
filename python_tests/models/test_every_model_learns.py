"""Every model of the registry learns: gradients, dropout, autocast, devices."""

from __future__ import annotations

import statistics

import pytest
import torch

from python_tests.models.forms import (
    FORMS,
    LENGTHS,
    MAX_LEN,
    N_ITEMS,
    TARGET,
    losses_of_training,
    make,
    packed,
    without_gradient,
)
from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close
from recgrela.models import build
from recgrela.models.sigma import GRU


@pytest.mark.parametrize("form", FORMS)
def test_learns_with_every_parameter(form: str) -> None:
    torch.manual_seed(1)
    model = build(FORMS[form], N_ITEMS, MAX_LEN)
    losses = losses_of_training(model, packed(), TARGET, steps=120)
    without = without_gradient(model)
    if form == "EchoMamba4Rec-mask":  # in the backward direction the last item is the first: nothing decays
        without.remove("layers.1.pairs.1.backward_mamba.A_log")
    assert not without, f"no gradient: {without}"
    assert statistics.median(losses[-20:]) < 0.5 * losses[0]


@pytest.mark.parametrize("form", FORMS)
def test_dropout_is_random_only_in_training(form: str) -> None:
    model, batch = make(form).train(), packed()
    assert not torch.equal(model.score_packed(*batch), model.score_packed(*batch))
    model.eval()
    assert torch.equal(model.score_packed(*batch), model.score_packed(*batch))


@pytest.mark.parametrize("form", FORMS)
def test_autocast_is_near(form: str) -> None:
    model, (items, cu_seqlens, longest) = make(form, torch.float32), packed()
    scores = model.score_packed(items, cu_seqlens, longest)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.score_packed(items, cu_seqlens, longest)
        loss = model.loss_packed(items, cu_seqlens, TARGET, longest)
    loss.backward()
    assert (low.float() - scores).abs().mean() < 0.05 * scores.abs().mean()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_is_on_the_models_device(form: str) -> None:
    """On the meta device, which refuses CPU tensors."""
    model = build(FORMS[form], N_ITEMS, MAX_LEN).to("meta")
    items, cu_seqlens = (torch.empty(n, dtype=torch.int64, device="meta") for n in (sum(LENGTHS), 5))
    for objective in model.trains_on:
        target = torch.empty(4 if objective == "last" else len(items), dtype=torch.int64, device="meta")
        model.loss_packed(items, cu_seqlens, target, MAX_LEN, objective).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


def test_the_gru_stays_in_training_mode() -> None:
    """cuDNN refuses the backward of a GRU in eval mode; a GRU of one layer computes the same in both."""
    model = make("SIGMA", torch.float32).train().eval()
    rows, (ours, *_) = torch.randn(2, 5, 16), [m for m in model.modules() if isinstance(m, torch.nn.GRU)]
    assert isinstance(ours, GRU) and ours.training and not model.layers[0].training
    plain = torch.nn.GRU(16, 16, bias=False, batch_first=True).eval()
    plain.load_state_dict(ours.state_dict())
    assert torch.equal(ours(rows)[0], plain(rows)[0])


@needs_gpu
@pytest.mark.parametrize("form", FORMS)
def test_the_same_on_a_gpu(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # cuDNN's default for the GRU
    items, cu_seqlens, longest = packed()
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        model = make(form, dtype).to(device)
        batch = (items.to(device), cu_seqlens.to(device))
        scores = model.score_packed(*batch, longest)
        loss = model.loss_packed(*batch, TARGET.to(device), longest)
        loss.backward()
        results.append(
            [scores.cpu(), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}]
        )
    (scores, grads), (got, got_grads) = results
    assert_close("scores", scores, got, 1e-3)
    for name, grad in grads.items():
        assert_close(name, grad, got_grads[name], 1e-2, scale=1e-4)

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.support.tensors import assert_close
from recgrela.data import Interactions
from recgrela.ops import linear_cross_entropy_reference
from recgrela.system.errors import ConfigError
from recgrela.training.losses import GBCE, FullSoftmax, SampledLoss, SampledSoftmax, make_loss

N_ITEMS = 30
lce = sys.modules["recgrela.ops.linear_cross_entropy"]


def operands(rows: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(rows, 8, dtype=torch.float64).requires_grad_()
    weight = torch.randn(N_ITEMS, 8, dtype=torch.float64).requires_grad_()
    return hidden, weight, torch.randint(1, N_ITEMS, (rows,))


def skewed_counts(events: int = 5000) -> Tensor:
    """Numbers of events of items; the first ones are most frequent."""
    return torch.bincount(1 + (torch.rand(events) ** 3 * (N_ITEMS - 1)).long(), minlength=N_ITEMS)


def make_sampled_loss(name: str) -> SampledSoftmax | GBCE:
    """A loss with 12 negatives."""
    if name == "sampled_softmax":
        return SampledSoftmax(skewed_counts(), 12)
    return GBCE(skewed_counts(), 12, 0.75)


def naive_sampled_softmax(loss: SampledSoftmax, scores: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    counts = loss.ends.diff(prepend=torch.zeros(1)).double() / loss.num_events
    half = len(negatives) // 2
    log_q = (half * counts + (len(negatives) - half) / (N_ITEMS - 1)).log()
    rows = []
    for row, t in zip(scores, target.tolist(), strict=True):
        others = [n for n in negatives.tolist() if n != t]
        rows.append(-torch.cat([row[[t]], (row - log_q)[others]]).log_softmax(0)[0])
    return torch.stack(rows).mean()


def naive_gbce(scores: Tensor, target: Tensor, negatives: Tensor, t: float) -> Tensor:
    k = len(negatives)
    alpha = k / (N_ITEMS - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    rows = []
    for row, own in zip(scores, target.tolist(), strict=True):
        others = row[[n for n in negatives.tolist() if n != own]]
        rows.append(-(row[own].sigmoid() ** beta).log() - (1 - others.sigmoid()).log().sum())
    return torch.stack(rows).mean() / (k + 1)


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 1000])
@pytest.mark.parametrize("name", ["sampled_softmax", "gbce"])
def test_equals_its_formula(name: str, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, target = operands()
    bias = torch.randn(N_ITEMS, dtype=torch.float64).requires_grad_()
    loss = make_sampled_loss(name)
    monkeypatch.setitem(lce.MAX_LOGITS, "cpu", 12 * rows_at_a_time)
    negatives = loss.draw()
    assert negatives.shape == (12,) and (negatives[:, None] == target).any(), "no negative is a target"
    got = loss.with_negatives(hidden, weight, target, negatives, bias)
    scores = hidden @ weight.T + bias
    if isinstance(loss, SampledSoftmax):
        expected = naive_sampled_softmax(loss, scores, target, negatives)
    else:
        expected = naive_gbce(scores, target, negatives, 0.75)
    assert_close("loss", expected, got, 1e-6)  # scores are compared in float32
    grads = (torch.autograd.grad(x, [hidden, weight, bias]) for x in (expected, got))
    for a, b in zip(*grads, strict=True):
        assert_close("gradient", a, b, 1e-5)


def test_negatives_are_half_frequent_half_uniform() -> None:
    counts = skewed_counts()
    drawn = torch.bincount(SampledSoftmax(counts, 200_000).draw(), minlength=N_ITEMS) / 200_000
    uniform = torch.full((N_ITEMS,), 1 / (N_ITEMS - 1)).index_fill(0, torch.tensor([0]), 0)
    assert drawn[0] == 0
    assert (drawn - (counts / counts.sum() + uniform) / 2).abs().max() < 0.005
    gbce = GBCE(counts, 25, 0.5)
    plain = torch.bincount(torch.cat([gbce.draw() for _ in range(8000)]), minlength=N_ITEMS) / 200_000
    assert (plain - uniform).abs().max() < 0.005


def test_sampled_softmax_approaches_the_full_one() -> None:
    """Without the correction, the gradients of frequent items would be too large."""
    hidden, weight, target = operands(200)
    with torch.no_grad():
        weight[0] = -100 * hidden.mean(0)  # padding is never drawn
    loss = SampledSoftmax(skewed_counts(), 200_000)
    got = loss(hidden, weight, target)
    scores = (hidden @ weight.T).index_fill(1, torch.tensor([0]), -math.inf)
    expected = torch.nn.functional.cross_entropy(scores, target)
    assert_close("loss", expected, got, 0.005)
    assert_close("gradient", *(torch.autograd.grad(x, hidden)[0] for x in (expected, got)), 0.01)


def test_beta_without_and_with_full_calibration() -> None:
    loss = GBCE(skewed_counts(), 10, 0.0)
    assert loss.beta == pytest.approx(1)
    full = GBCE(skewed_counts(), 10, 1.0)
    assert full.beta == pytest.approx(10 / (N_ITEMS - 1))


def test_more_negatives_than_items_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"30 is more than the 29 items that gbce draws from; use train.loss softmax"
    ):
        GBCE(skewed_counts(), 30, 0.5)


def test_losses_by_name() -> None:
    data = Interactions(
        items=torch.tensor([1, 2, 3, 4, 5, 6, 7, 8], dtype=torch.int32),
        offsets=torch.tensor([0, 5, 6, 8]),
        user_ids=["a", "b", "c"],
        item_ids=[str(i) for i in range(9)],
        titles=None,
        n_items=9,
        sha256="",
        description={},
    )
    counts = [0, 1, 1, 1, 0, 0, 1, 1, 1]  # without the last two events of the user with five
    assert data.train_item_counts().tolist() == counts
    softmax = make_loss("softmax", 0.1, 4, 0.5, data)
    assert isinstance(softmax, FullSoftmax)
    hidden, weight, target = operands()
    expected = linear_cross_entropy_reference(hidden, weight, target, label_smoothing=0.1)
    assert_close("loss", expected, softmax(hidden, weight, target), 1e-12)
    for name, kind in (("sampled_softmax", SampledSoftmax), ("gbce", GBCE)):
        loss = make_loss(name, 0.0, 4, 0.5, data)  # type: ignore[arg-type]
        assert isinstance(loss, SampledLoss) and type(loss) is kind
        assert loss.ends.tolist() == np.cumsum(counts).tolist() and loss.num_negatives == 4


@pytest.mark.parametrize("name", ["sampled_softmax", "gbce"])
def test_half_precision_is_summed_in_float32(name: str) -> None:
    hidden, weight, target = operands()
    loss = make_sampled_loss(name)
    negatives = loss.draw()
    expected = loss.with_negatives(hidden, weight, target, negatives)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss.with_negatives(hidden.float(), weight.float(), target, negatives)
    assert got.dtype == torch.float32
    assert_close("loss", expected, got, 0.02)

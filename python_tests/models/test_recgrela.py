"""RecGRELA: its formulas, its switches, its positions."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.models.authors import TINY, tensors_of, tiny_state
from python_tests.models.forms import check_last_rows, losses_of_training, packed, without_gradient
from python_tests.support.tensors import assert_close
from recgrela.models import RecGRELA, RecGRELAConfig, SequenceModel, build, from_official
from recgrela.nn import RotaryTable

SMALL = RecGRELAConfig(hidden_size=16, num_heads=2, num_layers=2)


@pytest.mark.parametrize("position", ["rotary", "learned", "none"])
@pytest.mark.parametrize(
    "mode, padding", [("causal", "mask"), ("bidirectional", "mask"), ("bidirectional", "attend")]
)
def test_last_rows_alone_equal_those_of_all_rows(mode: Any, padding: Any, position: Any) -> None:
    config = replace(SMALL, mode=mode, padding=padding, position=position)
    check_last_rows(build(config, 30, 12).double().eval(), packed([5, 1, 12]), 1e-12, 1e-10)


def test_the_rotary_table_of_training_is_kept() -> None:
    """A CUDA graph holds its address, and its length may change the rounding."""
    table, x = RotaryTable(8, 1e4, max_len=20), torch.zeros(1)
    first = table(5, x)
    assert len(first) == 20 and table(20, x) is first
    longer = table(50, x)
    assert len(longer) == 50 and table(21, x) is longer
    assert len(table(60, x)) == 60 and table(7, x) is first
    assert table(7, x.double()).dtype == torch.float64


def tiny_model(case: str) -> SequenceModel:
    state = tiny_state()
    if case == "one_block":
        state = {k: v for k, v in state.items() if "block.1" not in k}
    model = from_official("RecGRELA", state, {"num_heads": 2, "max_len": 6})
    if case in ("mask", "causal"):
        config = replace(model.config, padding="mask", mode="causal" if case == "causal" else "bidirectional")
        other = build(config, model.n_items, model.max_len).double().eval()
        other.load_state_dict(model.state_dict())
        return other
    return model


@pytest.mark.parametrize("case", ["attend", "one_block", "mask", "causal"])
def test_equals_the_formulas(case: str, ops: str) -> None:
    z = np.load(TINY)
    model = tiny_model(case)
    item_seq, lengths = torch.tensor(z["item_seq"]), torch.tensor(z["lengths"])
    assert_close("scores", torch.tensor(z[f"{case}.scores"]), model.score(item_seq, lengths), 1e-12)
    target = torch.tensor(z["target_all" if case == "causal" else "target"])
    loss = model.loss(item_seq, lengths, target)
    loss.backward()
    assert_close("loss", torch.tensor(z[f"{case}.loss"]), loss, 1e-12)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    for n, grad in RecGRELA.official.convert(tensors_of(z, f"{case}.grad.")).items():
        known = ~grad.isnan()
        assert_close(n, grad[known], gradients[n][known], 1e-6)


def test_initial_weights() -> None:
    model = build(RecGRELAConfig(), 3417, 200)
    for name, p in model.named_parameters():
        if name.endswith("bias") and "conv" not in name:
            assert not p.any(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif p.dim() == 2:
            assert abs(p.std() - 0.02) < 0.002, name
    assert model.item_embedding.weight[0].abs().sum() > 0


SWITCHES: list[dict[str, Any]] = [
    {"drop_path": 0.0},
    {"position": "none"},
    {"position": "learned"},
    {"position": "sinusoidal"},
    {"conv_width": 0},
    {"conv_width": 3},
    {"gate": False},
    {"gate": False, "value_projection": True},
    {"value_projection": True, "input_projection": False},
    {"gate_activation": "relu"},
    {"gate_activation": "gelu"},
    {"mlp_activation": "relu"},
    {"mlp_activation": "silu"},
    {"num_layers": 1},
    {"num_layers": 1, "single_block_residual": True},
    {"num_layers": 6},
    {"num_heads": 8},
    {"dropout": 0.5},
    {"mode": "bidirectional"},
    {"mode": "bidirectional", "padding": "attend"},
]


def large_model(config: RecGRELAConfig) -> SequenceModel:
    """A model whose weights are large enough for every part of it to show in the scores."""
    torch.manual_seed(1)
    model = build(config, 30, 12).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and "conv" not in name:
                p *= 20
    return model


@pytest.mark.parametrize("change", SWITCHES, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()))
def test_every_switch_learns_and_changes_the_model(change: dict[str, Any]) -> None:
    model, batch = build(replace(SMALL, **change), 30, 12), packed([12, 3, 8, 5])
    if change.keys() - {"dropout", "drop_path"}:
        plain, changed = (large_model(c).score_packed(*batch) for c in (SMALL, replace(SMALL, **change)))
        assert (plain - changed).abs().max() > 1e-3
    losses = losses_of_training(model, batch, torch.randint(1, 30, (4,)), steps=80)
    assert not (without := without_gradient(model)), f"no gradient: {without}"
    assert statistics.median(losses[-20:]) < 0.5 * losses[0]  # single losses may jump


def test_histories_beyond_max_len() -> None:
    batch = packed([30])
    build(SMALL, 30, 20).eval().score_packed(*batch)  # rotary positions have no end
    for change in ({"position": "learned"}, {"mode": "bidirectional", "padding": "attend"}):
        with pytest.raises(ValueError, match="max_seqlen: 30 is above the 20 positions"):
            build(replace(SMALL, **change), 30, 20).score_packed(*batch)

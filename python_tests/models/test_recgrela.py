from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.support.files import shared_file
from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.models import RecGRELA, RecGRELAConfig, SequenceModel, build, from_official
from recgrela.nn import RotaryTable
from recgrela.ops import gated_rela_last_reference, gated_rela_reference
from recgrela.system.errors import ConfigError

TINY = Path(__file__).parents[1] / "golden" / "recgrela_tiny.npz"
SMALL = RecGRELAConfig(hidden_size=16, num_heads=2, num_layers=2)


def tensors(arrays: Any, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return {k[len(prefix) :]: torch.tensor(arrays[k]).to(dtype) for k in arrays.files if k.startswith(prefix)}


@pytest.fixture(params=["kernels", "reference"])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model on the compiled op, and on its definition."""
    if request.param == "reference":
        monkeypatch.setattr("recgrela.nn.rela.gated_rela", gated_rela_reference)
        monkeypatch.setattr("recgrela.nn.rela.gated_rela_last", gated_rela_last_reference)
    return request.param


@pytest.mark.parametrize("dtype, ratio", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["1x64_h4_l32", "2x32_h2_l200", "4x64_h4_l50"])
def test_equals_the_authors_arrays(name: str, dtype: torch.dtype, ratio: float, ops: str) -> None:
    z = np.load(shared_file(f"golden/recgrela_{name}.npz"))
    config = {k[len("config.") :]: z[k].item() for k in z.files if k.startswith("config.")}
    model = from_official("RecGRELA", tensors(z, "param.", dtype), config)
    item_seq, lengths, target = (torch.tensor(z[k]) for k in ("item_seq", "item_seq_len", "target"))
    scores = model.score(item_seq, lengths)
    assert scores.dtype == dtype
    assert_close("scores", torch.tensor(z["scores"]), scores, ratio)
    loss = model.loss(item_seq, lengths, target)
    loss.backward()
    assert_close("loss", torch.tensor(z["loss"]), loss, ratio)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    expected = RecGRELA.own_state(tensors(z, "grad.", torch.float64))
    assert set(expected) == set(gradients)
    for n, grad in expected.items():
        assert_close(n, grad, gradients[n], ratio)


@pytest.mark.parametrize("position", ["rotary", "learned", "none"])
@pytest.mark.parametrize(
    "mode, padding", [("causal", "mask"), ("bidirectional", "mask"), ("bidirectional", "attend")]
)
def test_the_last_rows_alone_are_those_of_all(mode: Any, padding: Any, position: Any) -> None:
    """The last block makes them in another way, and for training with another gradient of the same values."""
    config = replace(SMALL, mode=mode, padding=padding, position=position)
    model = build(config, 30, 12).double().eval()
    cu_seqlens = cu_seqlens_of([5, 1, 12])
    items = torch.randint(1, 30, (18,))
    everything = model.hidden_states(items, cu_seqlens, 12, last_only=False)
    assert everything.shape == (18, 16)
    last = model.hidden_states(items, cu_seqlens, 12, last_only=True)
    assert_close("last rows", everything[cu_seqlens[1:] - 1], last, 1e-12)
    names, parameters = zip(*model.named_parameters(), strict=True)
    d = torch.randn_like(last)
    grads = [
        torch.autograd.grad(rows, parameters, d, allow_unused=True)
        for rows in (everything[cu_seqlens[1:] - 1], last)
    ]
    for name, a, b in zip(names, *grads, strict=True):
        if a is not None:
            assert_close(name, a, b, 1e-10)


def test_the_rotary_table_of_training_stays() -> None:
    """A CUDA graph holds its address, and its length may change the rounding."""
    table, x = RotaryTable(8, 1e4, max_len=20), torch.zeros(1)
    first = table(5, x)
    assert len(first) == 20 and table(20, x) is first
    longer = table(50, x)
    assert len(longer) == 50 and table(21, x) is longer
    assert len(table(60, x)) == 60 and table(7, x) is first
    assert table(7, x.double()).dtype == torch.float64


def tiny_model(arrays: Any, case: str) -> SequenceModel:
    state = tensors(arrays, "param.", torch.float64)
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
    model = tiny_model(z, case)
    item_seq, lengths = torch.tensor(z["item_seq"]), torch.tensor(z["lengths"])
    assert_close("scores", torch.tensor(z[f"{case}.scores"]), model.score(item_seq, lengths), 1e-12)
    target = torch.tensor(z["target_all" if case == "causal" else "target"])
    loss = model.loss(item_seq, lengths, target)
    loss.backward()
    assert_close("loss", torch.tensor(z[f"{case}.loss"]), loss, 1e-12)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    for n, grad in RecGRELA.own_state(tensors(z, f"{case}.grad.", torch.float64)).items():
        known = ~grad.isnan()
        assert_close(n, grad[known], gradients[n][known], 1e-6)


def test_published_size() -> None:
    model = build(RecGRELAConfig(), 3417, 200)
    assert sum(p.numel() for p in model.parameters()) == 436_672


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


def packed_batch(lengths: list[int], n_items: int = 30) -> tuple[Tensor, Tensor, int]:
    return torch.randint(1, n_items, (sum(lengths),)), cu_seqlens_of(lengths), max(lengths)


def padded(items: Tensor, lengths: list[int], length: int) -> Tensor:
    rows = [torch.nn.functional.pad(x, (0, length - len(x))) for x in items.split(lengths)]
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_packed_equals_padded_and_padding_length_does_not_matter(mode: Any) -> None:
    model = build(replace(SMALL, mode=mode), 30, 20).double().eval()
    lengths = [20, 1, 7]
    items, cu_seqlens, longest = packed_batch(lengths)
    packed = model.score_packed(items, cu_seqlens, longest)
    for length in (20, 31):
        assert torch.equal(model.score(padded(items, lengths, length), torch.tensor(lengths)), packed)
    alone = torch.cat([model.score(x[None], torch.tensor([len(x)])) for x in items.split(lengths)])
    assert_close("scores", packed, alone, 1e-12)


def test_attend_depends_on_max_len_and_mask_does_not() -> None:
    batch = packed_batch([5, 9])
    scores = {}
    for padding in ("attend", "mask"):
        for max_len in (9, 15):
            torch.manual_seed(0)
            config = replace(SMALL, mode="bidirectional", padding=padding)
            scores[padding, max_len] = build(config, 30, max_len).double().eval().score_packed(*batch)
    assert_close("mask", scores["mask", 9], scores["mask", 15], 1e-12)
    # only the longer sequence fills max_len=9, where there is nothing to attend to
    assert_close("full", scores["attend", 9][1], scores["mask", 9][1], 1e-12)
    assert (scores["attend", 9][0] - scores["mask", 9][0]).abs().max() > 1e-6
    assert (scores["attend", 9] - scores["attend", 15]).abs().max() > 1e-6


def test_objective_all_is_the_mean_over_prefixes() -> None:
    model = build(SMALL, 30, 20).double().eval()
    items, cu_seqlens, longest = packed_batch([6])
    target = torch.randint(1, 30, (6,))
    everywhere = model.loss_packed(items, cu_seqlens, target, longest, "all")
    prefixes = [
        model.loss_packed(items[: n + 1], cu_seqlens_of([n + 1]), target[n : n + 1], n + 1) for n in range(6)
    ]
    assert_close("loss", torch.stack(prefixes).mean(), everywhere, 1e-12)


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


def wide_model(config: RecGRELAConfig) -> SequenceModel:
    """Weights so large that every part of the model shows in the scores."""
    torch.manual_seed(1)
    model = build(config, 30, 12).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and "conv" not in name:
                p *= 20
    return model


@pytest.mark.parametrize("change", SWITCHES, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()))
def test_every_switch_learns_and_changes_the_model(change: dict[str, Any]) -> None:
    model = build(replace(SMALL, **change), 30, 12)
    items, cu_seqlens, longest = packed_batch([12, 3, 8, 5])
    target = torch.randint(1, 30, (4,))
    if change.keys() - {"dropout", "drop_path"}:
        plain, changed = (
            wide_model(c).score_packed(items, cu_seqlens, longest) for c in (SMALL, replace(SMALL, **change))
        )
        assert (plain - changed).abs().max() > 1e-3
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        loss = model.loss_packed(items, cu_seqlens, target, longest)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient: {without}"
    assert statistics.median(losses[-20:]) < 0.5 * losses[0]  # a single one may jump


def test_dropout_is_random_only_in_training() -> None:
    model = build(SMALL, 30, 12)
    batch = packed_batch([12, 3])
    assert not torch.equal(model.score_packed(*batch), model.score_packed(*batch))
    model.eval()
    assert torch.equal(model.score_packed(*batch), model.score_packed(*batch))


def test_converting_to_float64_keeps_exact_angles() -> None:
    torch.manual_seed(0)
    model = build(SMALL, 30, 12).eval()
    batch = packed_batch([12, 3])
    model.score_packed(*batch)  # makes the float32 table
    wide = model.double().score_packed(*batch)
    torch.manual_seed(0)
    fresh = build(SMALL, 30, 12).double().eval()
    assert torch.equal(wide, fresh.score_packed(*batch))


def test_training_after_inference_mode() -> None:
    model = build(SMALL, 30, 12)
    items, cu_seqlens, longest = packed_batch([12, 3])
    with torch.inference_mode():
        model.score_packed(items, cu_seqlens, longest)
    model.loss_packed(items, cu_seqlens, torch.tensor([1, 2]), longest).backward()


def test_histories_beyond_max_len() -> None:
    batch = packed_batch([30])
    build(SMALL, 30, 20).eval().score_packed(*batch)  # rotary positions have no end
    for change in ({"position": "learned"}, {"mode": "bidirectional", "padding": "attend"}):
        with pytest.raises(ValueError, match="does not fit this model's max_len=20"):
            build(replace(SMALL, **change), 30, 20).score_packed(*batch)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 3}, "num_heads: 3 does not divide"),
        ({"num_heads": 16}, "even width"),
        ({"dropout": 1.0}, "dropout: 1.0 is not below 1"),
        ({"drop_path": -0.1}, "drop_path: -0.1 is below 0"),
        ({"num_layers": 0}, "num_layers: 0 is below 1"),
        ({"conv_width": -1}, "conv_width"),
        ({"rotary_base": 1.0}, "rotary_base"),
        ({"rotary_base": float("nan")}, "rotary_base"),
        ({"eps": float("nan")}, "eps"),
        ({"padding": "attend"}, "bidirectional only"),
        (
            {"mode": "Causal"},
            "model.mode: 'Causal' is not one of causal, bidirectional; did you mean 'causal'",
        ),
        ({"position": "rope"}, "model.position"),
        ({"gate_activation": "swish"}, "model.gate_activation"),
    ],
)
def test_bad_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **change)


def test_bad_calls() -> None:
    model = build(SMALL, 30, 20).eval()
    seq = torch.randint(1, 30, (2, 5))
    with pytest.raises(ValueError, match=r"lengths \[B\]"):
        model.score(seq, torch.tensor([5]))
    with pytest.raises(ValueError, match=r"lengths must be 1 \.\. 5, got 0"):
        model.score(seq, torch.tensor([5, 0]))
    with pytest.raises(ValueError, match=r"item ids must be 0 \.\. 29, got .* 30"):
        model.score(torch.full((2, 5), 30), torch.tensor([5, 2]))
    with pytest.raises(ValueError, match="target must be"):
        model.loss(seq, torch.tensor([5, 2]), torch.zeros(2, 4, dtype=torch.int64))
    bidirectional = build(replace(SMALL, mode="bidirectional"), 30, 20)
    with pytest.raises(ConfigError, match="objective 'all' does not go with"):
        bidirectional.loss(seq, torch.tensor([5, 2]), seq)
    for n_items, max_len in ((1, 20), (30, 0)):
        with pytest.raises(ConfigError):
            build(SMALL, n_items, max_len)


def test_bad_official_parameters() -> None:
    z = np.load(TINY)
    state = tensors(z, "param.", torch.float64)
    settings = {"num_heads": 2, "MAX_ITEM_LIST_LENGTH": 6}
    from_official("RecGRELA", state | {"GRELA_block.0.attn.rope.rotations": torch.zeros(6, 4, 2)}, settings)
    with pytest.raises(ConfigError, match="unknown model 'GRELA'"):
        from_official("GRELA", state, settings)
    with pytest.raises(ConfigError, match="lack 'num_heads'"):
        from_official("RecGRELA", state, {"max_len": 6})
    with pytest.raises(ConfigError, match="lack 'item_embedding"):
        from_official("RecGRELA", {}, settings)
    with pytest.raises(ConfigError, match="not the parameters of an official RecGRELA"):
        from_official("RecGRELA", state | {"extra.weight": torch.zeros(1).double()}, settings)
    with pytest.raises(ConfigError, match="not the parameters of an official RecGRELA"):
        from_official("RecGRELA", state | {"LayerNorm.weight": torch.zeros(5).double()}, settings)
    with pytest.raises(ConfigError, match="not the parameters or settings"):
        from_official("RecGRELA", state | {"item_embedding.weight": torch.zeros(5).double()}, settings)
    with pytest.raises(ConfigError, match="not the parameters or settings"):
        from_official("RecGRELA", state, settings | {"num_heads": "x"})
    with pytest.raises(ConfigError, match="num_layers is 7, the parameters have 2"):
        from_official("RecGRELA", state, settings | {"num_layers": 7})
    with pytest.raises(ConfigError, match="one floating dtype"):
        from_official("RecGRELA", state | {"LayerNorm.weight": torch.zeros(8)}, settings)


def test_from_official_leaves_the_random_numbers_alone() -> None:
    state = tensors(np.load(TINY), "param.", torch.float64)
    before = torch.get_rng_state()
    from_official("RecGRELA", state, {"num_heads": 2, "max_len": 6})
    assert torch.equal(torch.get_rng_state(), before)


def test_exports_and_still_runs() -> None:
    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build(SMALL, 30, 12).eval()

        def forward(self, items: Tensor, cu_seqlens: Tensor) -> Tensor:
            return self.model.score_packed(items, cu_seqlens, 12)

    module = Scores()
    items, cu_seqlens, _ = packed_batch([12, 3])
    exported = torch.export.export(module, (items, cu_seqlens))
    scores = module(items, cu_seqlens)
    assert type(scores) is Tensor
    assert_close("scores", scores, exported.module()(items, cu_seqlens), 1e-6)

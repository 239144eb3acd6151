"""The models against plain functions of the same weights, and these against the authors' arrays."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.models import plain
from python_tests.support.files import shared_file
from python_tests.support.tensors import assert_close
from recgrela.models import MODELS, SequenceModel, build, from_official

N_ITEMS = 23
SMALL = {"hidden_size": 12, "num_layers": 2, "num_heads": 3, "inner_size": 20, "state_size": 3, "flip": 5}
EULER = {"contrastive_weight": 0.3, "temperature": 0.8}  # large enough to show

# model, change of SMALL, max_len
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("SASRec", {}, 11),
    ("SASRec", {"num_layers": 1, "num_heads": 1, "hidden_size": 7}, 16),
    ("SASRec", {"num_layers": 3, "num_heads": 4, "inner_size": 5}, 1),
    ("LinRec", {}, 11),
    ("LinRec", {"num_layers": 1, "num_heads": 1, "hidden_size": 7}, 16),
    ("LinRec", {"num_layers": 3, "num_heads": 4, "inner_size": 5}, 3),
    ("LRURec", {}, 11),
    ("LRURec", {"num_layers": 1, "hidden_size": 7}, 16),
    ("LRURec", {"num_layers": 3, "hidden_size": 3}, 17),
    ("Mamba4Rec", {}, 11),
    ("Mamba4Rec", {"num_layers": 1, "hidden_size": 7, "conv_width": 2, "expand": 1, "state_size": 1}, 16),
    ("Mamba4Rec", {"num_layers": 1, "single_layer_residual": True, "hidden_size": 20, "conv_width": 1}, 6),
    ("Mamba4Rec", {"num_layers": 3, "hidden_size": 5, "conv_width": 6, "expand": 3}, 2),
    ("EchoMamba4Rec", {}, 11),
    ("EchoMamba4Rec", {"num_layers": 1, "hidden_size": 20, "conv_width": 2, "expand": 1}, 16),
    ("EchoMamba4Rec", {"hidden_size": 5, "conv_width": 5, "expand": 3, "state_size": 7}, 2),
    ("EulerFormer", EULER, 11),
    ("EulerFormer", {"num_layers": 1, "num_heads": 2, "hidden_size": 14, "query_bias": False} | EULER, 16),
    ("EulerFormer", {"num_layers": 3, "num_heads": 4, "inner_size": 5} | EULER, 3),
    ("RecBLR", {}, 11),
    ("RecBLR", {"num_layers": 1, "hidden_size": 7, "conv_width": 2, "expand": 1}, 16),
    ("RecBLR", {"num_layers": 3, "hidden_size": 5, "conv_width": 6, "expand": 3}, 9),
    ("SIGMA", {}, 11),
    ("SIGMA", {"num_layers": 1, "hidden_size": 20, "conv_width": 2, "expand": 1, "flip": 45}, 16),
    ("SIGMA", {"num_layers": 1, "single_layer_residual": True, "hidden_size": 7, "flip": 1}, 6),
    ("SIGMA", {"num_layers": 3, "hidden_size": 5, "conv_width": 6, "expand": 3, "flip": 2}, 2),
]
CAUSAL = [case for case in CASES if "all" in MODELS[case[0]].model.trains_on]


def ids(cases: list[tuple[str, dict[str, Any], int]]) -> list[str]:
    return [f"{name}-{max_len}" for name, _, max_len in cases]


def config_of(name: str, change: dict[str, Any]) -> Any:
    kind = MODELS[name].config
    known = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in (SMALL | change).items() if key in known})


def make(config: Any, max_len: int) -> SequenceModel:
    """A model whose weights are all random and large enough to show, also those that start at 0 or 1."""
    model = build(config, N_ITEMS, max_len).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1 or name.endswith(("A_log", "params_log")):
                p += 0.3 * torch.randn_like(p)
            else:
                p.copy_(torch.randn_like(p) / p[0].numel() ** 0.5)
    return model


def weights_of(model: SequenceModel) -> dict[str, Tensor]:
    """A copy of the weights without gradients."""
    return {name: x.detach().clone().requires_grad_() for name, x in model.state_dict().items()}


def batch_of(max_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """item_seq [B, max_len], lengths [B], the item after each [B, max_len]."""
    lengths = torch.tensor([max_len, 1, max(1, max_len - 1), (max_len + 1) // 2])
    items = torch.randint(1, N_ITEMS, (4, max_len + 1))
    real = torch.arange(max_len) < lengths[:, None]
    return items[:, :-1] * real, lengths, items[:, 1:]


def packed(item_seq: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, int]:
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    return item_seq[item_seq != 0], offsets, int(lengths.max())


def assert_gradients(model: SequenceModel, loss: Tensor, w: dict[str, Tensor], plain_loss: Tensor) -> None:
    assert_close("loss", plain_loss, loss, 1e-9)
    parameters = dict(model.named_parameters())
    how: Any = {"allow_unused": True, "materialize_grads": True}
    expected = torch.autograd.grad(plain_loss, [w[name] for name in parameters], **how)
    got = torch.autograd.grad(loss, list(parameters.values()), **how)
    for name, a, b in zip(parameters, expected, got, strict=True):
        assert_close(name, a, b, 1e-9)


@pytest.mark.parametrize("name, change, max_len", CASES, ids=ids(CASES))
def test_equals_the_plain_function(name: str, change: dict[str, Any], max_len: int) -> None:
    config = config_of(name, change)
    model, (item_seq, lengths, following) = make(config, max_len), batch_of(max_len)
    w = weights_of(model)
    states, extra = plain.states(w, config, item_seq)
    rows = model.hidden_states(*packed(item_seq, lengths), last_only=False)
    assert_close("states", states[item_seq != 0], rows, 1e-9)

    batch = torch.arange(len(lengths))
    scores = plain.scores(w, states[batch, lengths - 1])
    assert_close("scores", scores, model.score(item_seq, lengths), 1e-9)
    target = following[batch, lengths - 1]
    loss = F.cross_entropy(scores, target) + extra
    assert_gradients(model, model.loss(item_seq, lengths, target), w, loss)


@pytest.mark.parametrize("name, change, max_len", CAUSAL, ids=ids(CAUSAL))
def test_every_position_equals_the_plain_function(name: str, change: dict[str, Any], max_len: int) -> None:
    config = config_of(name, change)
    model, (item_seq, lengths, following) = make(config, max_len), batch_of(max_len)
    w, real = weights_of(model), item_seq != 0
    states, extra = plain.states(w, config, item_seq)
    loss = F.cross_entropy(plain.scores(w, states[real]), following[real]) + extra
    assert_gradients(model, model.loss(item_seq, lengths, following), w, loss)


def test_eulerformers_angles() -> None:
    """Position i rotates pair t by i 10000^(-2t / D). The plain function takes the angles as given."""
    angles = make(config_of("EulerFormer", {}), 11).get_buffer("blocks.1.attention.angles")
    expected = [[i * 10000 ** (-2 * t / 12) for t in range(6)] for i in range(11)]
    assert_close("angles", torch.tensor(expected).double(), angles, 1e-7)  # computed in float32


# ---- the forms without padding slots, each sequence on its own

CLEAN = [case for case in CASES if case[0] in ("LinRec", "EchoMamba4Rec", "EulerFormer", "RecBLR", "SIGMA")]


@pytest.mark.parametrize("name, change, max_len", CLEAN, ids=ids(CLEAN))
def test_forms_without_padding_equal_each_sequence_alone(
    name: str, change: dict[str, Any], max_len: int
) -> None:
    clean = {"warm_up": False} if name == "RecBLR" else {"padding": "mask"}
    config = config_of(name, change | clean)
    model, (item_seq, lengths, following) = make(config, max_len), batch_of(max_len)
    w, last, loss = weights_of(model), [], torch.zeros(())
    for items, n in zip(item_seq, lengths.tolist(), strict=True):
        own, how = items[None, :n], {}
        if name == "EchoMamba4Rec":
            how = {"filter_len": max_len}
        elif name == "RecBLR":  # a power of two needs no slots before it, and later slots have no effect
            own = F.pad(own, (0, 32 - n))
        states, extra = plain.states(w, config, own, **how)
        last.append(states[0, n - 1])
        loss = loss + extra / len(lengths)  # a target per sequence
    scores = plain.scores(w, torch.stack(last))
    assert_close("scores", scores, model.score(item_seq, lengths), 1e-9)
    target = following[torch.arange(len(lengths)), lengths - 1]
    loss = loss + F.cross_entropy(scores, target)
    assert_gradients(model, model.loss(item_seq, lengths, target), w, loss)


# ---- the plain functions against the authors' arrays


@pytest.mark.parametrize("name", [name for name in plain.PLAIN if name != "SASRec"])
def test_the_plain_function_equals_the_authors_arrays(name: str) -> None:
    z = np.load(shared_file(f"golden/{name.lower()}_a.npz"))
    given = {
        kind: {key[len(kind) + 1 :]: torch.tensor(z[key]) for key in z.files if key.startswith(f"{kind}.")}
        for kind in ("param", "grad")
    }
    settings = {key[len("config.") :]: z[key].item() for key in z.files if key.startswith("config.")}
    model = from_official(name, given["param"], settings)
    item_seq, lengths, target = (torch.tensor(z[key]) for key in ("item_seq", "item_seq_len", "target"))
    w = weights_of(model)
    states, extra = plain.states(w, model.config, item_seq)
    scores = plain.scores(w, states[torch.arange(len(lengths)), lengths - 1])
    assert_close("scores", torch.tensor(z["scores"]), scores, 1e-11)
    loss = F.cross_entropy(scores, target)
    assert_close("cross-entropy", torch.tensor(z["cross_entropy"]), loss, 1e-11)
    loss = loss + extra
    assert_close("loss", torch.tensor(z["loss"]), loss, 1e-11)
    loss.backward()
    expected = MODELS[name].model.official.convert(given["grad"])
    assert set(expected) == {name for name, _ in model.named_parameters()}
    for key, grad in expected.items():
        assert_close(key, grad, w[key].grad, 1e-9)

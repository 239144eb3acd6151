"""Small models of the registry, in each of their forms, and batches for them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.models import MODELS, SequenceModel, build

N_ITEMS, MAX_LEN = 30, 12
LENGTHS = [12, 1, 7, 2]
TARGET = torch.tensor([3, 5, 7, 9])
SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "inner_size": 32, "state_size": 4, "flip": 5}


def small(model: str, **change: Any) -> Any:
    """A model's configuration with sizes for tests."""
    kind = MODELS[model].config
    known = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in SMALL.items() if key in known} | change)


def forms() -> dict[str, Any]:
    """Configurations of every model: the default, the other value of `padding`, and a few more."""
    found = {}
    for name in MODELS:
        config = small(name)
        found[name] = config
        if hasattr(config, "padding"):
            other = {"padding": "mask" if config.padding == "attend" else "attend"}
            if name == "RecGRELA":
                other["mode"] = "bidirectional"
            found[f"{name}-{other['padding']}"] = replace(config, **other)
    found["RecGRELA-bidirectional"] = small("RecGRELA", mode="bidirectional")
    found["RecBLR-cold"] = small("RecBLR", warm_up=False)
    found["Mamba4Rec-one-layer"] = small("Mamba4Rec", num_layers=1)
    return found


FORMS = forms()
BUILT = {form: build(config, N_ITEMS, MAX_LEN) for form, config in FORMS.items()}
CAUSAL = [form for form, model in BUILT.items() if "all" in model.trains_on]
BOUNDED = [form for form, model in BUILT.items() if model.max_positions is not None]


def make(
    form: str, dtype: torch.dtype = torch.float64, max_len: int = MAX_LEN, **change: Any
) -> SequenceModel:
    """A model in eval mode whose weights are large enough for every part of it to show in the scores."""
    torch.manual_seed(1)
    model = build(replace(FORMS[form], **change), N_ITEMS, max_len).to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and not any(part in name for part in ("conv", "A_log", "params_log")):
                p *= 10
    return model


def packed(lengths: list[int] = LENGTHS, n_items: int = N_ITEMS) -> tuple[Tensor, Tensor, int]:
    """Item ids [T], offsets [B + 1] and the longest length of sequences of these lengths."""
    generator = torch.Generator().manual_seed(3)
    items = torch.randint(1, n_items, (sum(lengths),), generator=generator)
    return items, cu_seqlens_of(lengths), max(lengths)


def padded(items: Tensor, lengths: list[int], length: int) -> Tensor:
    """Packed items [T] as [B, length], right-padded with 0."""
    return torch.stack([F.pad(x, (0, length - len(x))) for x in items.split(lengths)])


def losses_of_training(
    model: SequenceModel, batch: tuple[Tensor, Tensor, int], target: Tensor, steps: int
) -> list[float]:
    """The loss of each Adam step on one batch, objective "last"."""
    items, cu_seqlens, longest = batch
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(steps):
        loss = model.loss_packed(items, cu_seqlens, target, longest)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def without_gradient(model: SequenceModel) -> list[str]:
    """The names of the parameters whose gradient is missing or zero."""
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def check_last_rows(
    model: SequenceModel, batch: tuple[Tensor, Tensor, int], ratio: float, gradient_ratio: float
) -> None:
    """Compares the last rows alone with those of all rows, and their gradients."""
    items, cu_seqlens, longest = batch
    everything = model.hidden_states(items, cu_seqlens, longest, last_only=False)
    assert everything.shape == (len(items), model.config.hidden_size)
    last = model.hidden_states(items, cu_seqlens, longest, last_only=True)
    assert_close("last rows", everything[cu_seqlens[1:] - 1], last, ratio)
    names, parameters = zip(*model.named_parameters(), strict=True)
    d_last = torch.randn_like(last)
    grads = [
        torch.autograd.grad(rows, parameters, d_last, allow_unused=True)
        for rows in (everything[cu_seqlens[1:] - 1], last)
    ]
    for name, a, b in zip(names, *grads, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert_close(name, a, b, gradient_ratio)

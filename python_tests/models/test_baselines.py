"""The seven baselines against the authors' arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.support.files import shared_file
from python_tests.support.tensors import assert_close
from recgrela.models import MODELS, build, from_official
from recgrela.ops import linear_scan_reference, selective_scan_reference
from recgrela.system.errors import ConfigError

BASELINES = ["LinRec", "LRURec", "Mamba4Rec", "EchoMamba4Rec", "EulerFormer", "RecBLR", "SIGMA"]


def arrays_of(name: str) -> Any:
    return np.load(shared_file(f"golden/{name.lower()}_a.npz"))


def official(z: Any, prefix: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The authors' tensors, complex ones in the complex dtype of the same precision."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    tensors = {k[len(prefix) :]: torch.tensor(z[k]) for k in z.files if k.startswith(prefix)}
    return {k: x.to(complex_dtype if x.is_complex() else dtype) for k, x in tensors.items()}


def settings_of(z: Any) -> dict[str, Any]:
    return {k[len("config.") :]: z[k].item() for k in z.files if k.startswith("config.")}


@pytest.fixture(params=["kernels", "reference"])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The models on the compiled scans, and on their definitions."""
    if request.param == "reference":

        def scan(x: Tensor, a: Tensor, cu_seqlens: Tensor, **how: Any) -> Any:
            return linear_scan_reference(x, a, cu_seqlens, **how)

        monkeypatch.setattr("recgrela.models.lrurec.linear_scan", scan)
        monkeypatch.setattr("recgrela.models.recblr.linear_scan", scan)
        monkeypatch.setattr("recgrela.nn.mamba.selective_scan", selective_scan_reference)
    return request.param


@pytest.mark.parametrize("dtype, ratio", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", BASELINES)
def test_equals_the_authors_arrays(name: str, dtype: torch.dtype, ratio: float, ops: str) -> None:
    z = arrays_of(name)
    model = from_official(name, official(z, "param.", dtype), settings_of(z))
    item_seq, lengths, target = (torch.tensor(z[k]) for k in ("item_seq", "item_seq_len", "target"))
    scores = model.score(item_seq, lengths)
    assert scores.dtype == dtype
    assert_close("scores", torch.tensor(z["scores"]), scores, ratio)
    loss = model.loss(item_seq, lengths, target)
    loss.backward()
    assert_close("loss", torch.tensor(z["loss"]), loss, ratio)
    extra = loss.item() - torch.nn.functional.cross_entropy(scores, target).item()
    assert extra == pytest.approx(z["loss"] - z["cross_entropy"], rel=1e-5 if ratio < 1e-6 else 0.2, abs=1e-6)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    expected = MODELS[name].model.own_state(official(z, "grad."))
    assert set(expected) == set(gradients)
    for n, grad in expected.items():
        assert_close(n, grad, gradients[n], ratio if ratio < 1e-6 else 5e-4)


# As published, less what no score depends on: EchoMamba4Rec's block that is never called (125,184),
# EulerFormer's frozen angles (25,600), the imaginary parts of LRURec's output biases (128 of 355,993).
PUBLISHED_SIZES = {
    "LinRec": 728_192,
    "LRURec": 355_993 - 128,
    "Mamba4Rec": 363_072,
    "EchoMamba4Rec": 706_624 - 125_184,
    "EulerFormer": 363_652 - 25_600,
    "RecBLR": 402_240,
    "SIGMA": 478_534,
}


@pytest.mark.parametrize("name", BASELINES)
def test_published_size(name: str) -> None:
    model = build(MODELS[name].config(), 3417, 200)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_SIZES[name]


@pytest.mark.parametrize("name", BASELINES)
def test_bad_official_parameters(name: str) -> None:
    z = arrays_of(name)
    state, settings = official(z, "param."), settings_of(z)
    before = torch.get_rng_state()
    from_official(name, state, settings)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError, match="lack 'item_embedding"):
        from_official(name, {}, settings)
    with pytest.raises(ConfigError, match="lack 'MAX_ITEM_LIST_LENGTH'"):
        from_official(name, state, {k: v for k, v in settings.items() if k != "MAX_ITEM_LIST_LENGTH"})
    with pytest.raises(ConfigError, match=f"not the parameters of an official {name}"):
        from_official(name, state | {"extra.weight": torch.zeros(1).double()}, settings)
    norm = next(k for k in state if k.lower().replace("_", "").startswith("layernorm"))
    with pytest.raises(ConfigError, match=f"not the parameters of an official {name}"):
        from_official(name, state | {norm: torch.zeros(5).double()}, settings)
    with pytest.raises(ConfigError, match="hidden_size is 7, the parameters have 16"):
        from_official(name, state, settings | {"hidden_size": 7})
    with pytest.raises(ConfigError, match="one floating dtype"):
        from_official(name, state | {norm: state[norm].float()}, settings)

"""Models with the authors' weights equal the arrays that the authors' code gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from python_tests.models.authors import settings_of, tensors_of, tiny_state
from python_tests.support.files import shared_file
from python_tests.support.tensors import assert_close
from recgrela.models import MODELS, build, from_official
from recgrela.system.errors import ConfigError

RECGRELA = ["recgrela_1x64_h4_l32", "recgrela_2x32_h2_l200", "recgrela_4x64_h4_l50"]
BASELINES = ["LinRec", "LRURec", "Mamba4Rec", "EchoMamba4Rec", "EulerFormer", "RecBLR", "SIGMA"]
ARRAYS = [*(("RecGRELA", file) for file in RECGRELA), *((name, f"{name.lower()}_a") for name in BASELINES)]


@pytest.mark.parametrize("dtype, ratio", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name, file", ARRAYS)
def test_equals_the_authors_arrays(name: str, file: str, dtype: torch.dtype, ratio: float, ops: str) -> None:
    z = np.load(shared_file(f"golden/{file}.npz"))
    model = from_official(name, tensors_of(z, "param.", dtype), settings_of(z))
    item_seq, lengths, target = (torch.tensor(z[k]) for k in ("item_seq", "item_seq_len", "target"))
    scores = model.score(item_seq, lengths)
    assert scores.dtype == dtype
    assert_close("scores", torch.tensor(z["scores"]), scores, ratio)
    loss = model.loss(item_seq, lengths, target)
    loss.backward()
    assert_close("loss", torch.tensor(z["loss"]), loss, ratio)
    if name in BASELINES:
        extra = loss.item() - torch.nn.functional.cross_entropy(scores, target).item()
        rel = 1e-5 if ratio < 1e-6 else 0.2
        assert extra == pytest.approx(z["loss"] - z["cross_entropy"], rel=rel, abs=1e-6)
    got = {n: p.grad for n, p in model.named_parameters()}
    expected = MODELS[name].model.official.convert(tensors_of(z, "grad."))
    assert set(expected) == set(got)
    for n, grad in expected.items():
        assert_close(n, grad, got[n], 5e-4 if name in BASELINES and ratio > 1e-6 else ratio)


# Published sizes, less the parameters that no score depends on: EchoMamba4Rec's block that is never called
# (125,184), EulerFormer's frozen angles (25,600), the imaginary parts of LRURec's output biases (128).
PUBLISHED_SIZES = {
    "RecGRELA": 436_672,
    "LinRec": 728_192,
    "LRURec": 355_993 - 128,
    "Mamba4Rec": 363_072,
    "EchoMamba4Rec": 706_624 - 125_184,
    "EulerFormer": 363_652 - 25_600,
    "RecBLR": 402_240,
    "SIGMA": 478_534,
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_published_size(name: str) -> None:
    model = build(MODELS[name].config(), 3417, 200)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_SIZES[name]


@pytest.mark.parametrize("name", ["RecGRELA", *BASELINES])
def test_bad_parameters(name: str) -> None:
    if name == "RecGRELA":
        state, settings, size = tiny_state(), {"num_heads": 2, "MAX_ITEM_LIST_LENGTH": 6}, 8
    else:
        z = np.load(shared_file(f"golden/{name.lower()}_a.npz"))
        state, settings, size = tensors_of(z, "param."), settings_of(z), 16
    before = torch.get_rng_state()
    from_official(name, state, settings)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError, match="lack 'item_embedding"):
        from_official(name, {}, settings)
    with pytest.raises(ConfigError, match="lack 'MAX_ITEM_LIST_LENGTH'"):
        from_official(name, state, {k: v for k, v in settings.items() if k != "MAX_ITEM_LIST_LENGTH"})
    with pytest.raises(ConfigError, match=f"official {name}: the parameters do not fit"):
        from_official(name, state | {"extra.weight": torch.zeros(1).double()}, settings)
    norm = next(k for k in state if k.lower().replace("_", "").startswith("layernorm"))
    with pytest.raises(ConfigError, match=f"official {name}: the parameters do not fit"):
        from_official(name, state | {norm: torch.zeros(5).double()}, settings)
    with pytest.raises(ConfigError, match=f"hidden_size is 7, but the parameters have {size}"):
        from_official(name, state, settings | {"hidden_size": 7})
    with pytest.raises(ConfigError, match="one floating dtype"):
        from_official(name, state | {norm: state[norm].float()}, settings)


def test_bad_parameters_of_recgrela() -> None:
    state, settings = tiny_state(), {"num_heads": 2, "MAX_ITEM_LIST_LENGTH": 6}
    from_official("RecGRELA", state | {"GRELA_block.0.attn.rope.rotations": torch.zeros(6, 4, 2)}, settings)
    with pytest.raises(ConfigError, match="unknown model 'GRELA'"):
        from_official("GRELA", state, settings)
    with pytest.raises(ConfigError, match="lack 'num_heads'"):
        from_official("RecGRELA", state, {"max_len": 6})
    with pytest.raises(ConfigError, match="the parameters or settings do not fit"):
        from_official("RecGRELA", state | {"item_embedding.weight": torch.zeros(5).double()}, settings)
    with pytest.raises(ConfigError, match="the parameters or settings do not fit"):
        from_official("RecGRELA", state, settings | {"num_heads": "x"})
    with pytest.raises(ConfigError, match="num_layers is 7, but the parameters have 2"):
        from_official("RecGRELA", state, settings | {"num_layers": 7})

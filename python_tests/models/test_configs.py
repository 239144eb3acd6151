"""Configurations with values that are out of range or contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from python_tests.models.forms import small
from recgrela.models import MODELS
from recgrela.system.errors import ConfigError


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"dropout": 1.0}, "model.dropout: 1.0 is not below 1"),
        ({"hidden_size": 0}, "model.hidden_size: 0 is below 1"),
        ({"num_layers": 0}, "model.num_layers: 0 is below 1"),
        ({"name": "SASrec"}, "model.name: 'SASrec' is not "),
    ],
)
def test_every_model(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(name, **change)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("RecGRELA", {"num_heads": 3}, "num_heads: 3 does not divide"),
        ("RecGRELA", {"num_heads": 16}, "even width"),
        ("RecGRELA", {"drop_path": -0.1}, "drop_path: -0.1 is below 0"),
        ("RecGRELA", {"conv_width": -1}, "conv_width"),
        ("RecGRELA", {"rotary_base": 1.0}, "rotary_base"),
        ("RecGRELA", {"rotary_base": float("nan")}, "rotary_base"),
        ("RecGRELA", {"eps": float("nan")}, "eps"),
        ("RecGRELA", {"padding": "attend"}, "model.padding: attend requires model.mode bidirectional"),
        (
            "RecGRELA",
            {"mode": "Causal"},
            "model.mode: 'Causal' is not one of causal, bidirectional; did you mean 'causal'",
        ),
        ("RecGRELA", {"position": "rope"}, "model.position"),
        ("RecGRELA", {"gate_activation": "swish"}, "model.gate_activation"),
        ("SASRec", {"num_heads": 3}, "model.num_heads: 3 does not divide model.hidden_size 16"),
        ("SASRec", {"attention_dropout": -0.1}, "model.attention_dropout"),
        (
            "LinRec",
            {"padding": "masked"},
            "model.padding: 'masked' is not one of mask, attend; did you mean 'mask'",
        ),
        ("LinRec", {"inner_size": 0}, "model.inner_size"),
        ("EulerFormer", {"temperature": 0.0}, "model.temperature: 0.0 is not above 0"),
        ("EulerFormer", {"contrastive_weight": -1.0}, "model.contrastive_weight"),
        ("EulerFormer", {"hidden_size": 15, "num_heads": 3}, "model.hidden_size: 15 is not even"),
        ("Mamba4Rec", {"state_size": 0}, "model.state_size"),
        ("Mamba4Rec", {"state_size": 300}, "model.state_size: 300 is above 256"),
        ("LRURec", {"r_min": 0.99, "r_max": 0.8}, "model.r_min"),
        ("SIGMA", {"flip": 0}, "model.flip"),
        ("RecBLR", {"expand": 0}, "model.expand"),
    ],
)
def test_one_model(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(name, **change)

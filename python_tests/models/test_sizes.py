"""Sizes of models that are counted without allocating them."""

from __future__ import annotations

import pytest
import torch

from recgrela.models import CONFIGS, build
from recgrela.models.sizes import parameter_bytes


@pytest.mark.parametrize("name", CONFIGS)
def test_counted_bytes_are_those_of_the_model(name: str) -> None:
    config, n_items, max_len = CONFIGS[name](name=name), 50, 20
    before = torch.get_rng_state()
    counted = parameter_bytes(config, n_items, max_len)
    assert torch.equal(torch.get_rng_state(), before)
    model = build(config, n_items, max_len)
    assert counted == sum(x.numel() * x.element_size() for x in model.parameters())
    half = parameter_bytes(config, n_items, max_len, item_rows=n_items // 2)
    tables = [model.item_embedding.weight, *filter(torch.is_tensor, [model.item_bias])]
    item = sum(x.element_size() * x.numel() // n_items for x in tables if x.shape[0] == n_items)
    assert counted - half == item * (n_items // 2)


def test_a_model_larger_than_any_memory_is_counted() -> None:
    config = CONFIGS["SASRec"](name="SASRec", hidden_size=1 << 16, num_layers=1 << 20)  # type: ignore[call-arg]
    assert parameter_bytes(config, 1 << 30, 200) > 1 << 47

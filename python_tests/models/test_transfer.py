"""Weights copied to a model with other items, for every model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from python_tests.models.forms import BUILT, FORMS, LENGTHS, MAX_LEN, N_ITEMS, small
from recgrela.models import build
from recgrela.models.transfer import PER_ITEM, per_item, transfer
from recgrela.system.errors import ConfigError


@pytest.mark.parametrize("form", FORMS)
def test_only_these_parameters_have_a_row_per_item(form: str) -> None:
    """A model that gets another parameter of this kind needs a line in PER_ITEM."""
    one, other = BUILT[form].state_dict(), build(FORMS[form], N_ITEMS + 1, MAX_LEN).state_dict()
    assert one.keys() == other.keys()
    grown = {name for name in one if one[name].shape != other[name].shape}
    assert grown == set(PER_ITEM) & one.keys() == per_item(BUILT[form]).keys()


@pytest.mark.parametrize("form", FORMS)
def test_scores_of_items_that_are_kept(form: str) -> None:
    """Items in another order, without two and with three new ones: the others have the same scores."""
    source = build(FORMS[form], N_ITEMS, MAX_LEN).eval()
    for value in per_item(source).values():
        value.mul_(10)
    target = build(FORMS[form], N_ITEMS + 1, MAX_LEN).eval()
    own = {name: value.clone() for name, value in per_item(target).items()}
    kept = np.random.default_rng(0).permutation(np.arange(1, N_ITEMS - 2))
    rows = np.concatenate(([0], kept, [-1, -1, -1]))
    transfer(source, target, rows)
    here = torch.arange(1, len(kept) + 1)
    there = torch.from_numpy(kept)
    items = here[torch.arange(sum(LENGTHS)) % len(here)]
    seqlens = torch.tensor([0, *np.cumsum(LENGTHS)])
    with torch.no_grad():
        before = source.score_packed(there[items - 1], seqlens, max(LENGTHS))
        after = target.score_packed(items, seqlens, max(LENGTHS))
    torch.testing.assert_close(after[:, here], before[:, there], rtol=1e-5, atol=1e-5)
    for name, value in per_item(target).items():
        assert torch.equal(value[-3:], own[name][-3:])


def test_other_settings_are_refused() -> None:
    source, rows = build(small("SASRec"), N_ITEMS, MAX_LEN), np.arange(N_ITEMS)
    for change, message in (
        ({"hidden_size": 32}, "model.hidden_size: 32, but the weights are of a model with 16"),
        ({"inner_size": 64}, "model.inner_size: 64, but"),
    ):
        target = build(replace(small("SASRec"), **change), N_ITEMS, MAX_LEN)
        before = {name: value.clone() for name, value in target.state_dict().items()}
        with pytest.raises(ConfigError, match=message):
            transfer(source, target, rows)
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    with pytest.raises(ConfigError, match=r"model.name: 'LRURec', but the weights are of a model with"):
        transfer(source, build(small("LRURec"), N_ITEMS, MAX_LEN), rows)
    with pytest.raises(ConfigError, match=r"data.max_len: 20 does not fit .*position_embedding.weight is"):
        transfer(source, build(small("SASRec"), N_ITEMS, 20), rows)


def test_rates_and_lengths_may_differ() -> None:
    source, rows = build(small("RecGRELA"), N_ITEMS, MAX_LEN), np.arange(N_ITEMS)
    target = build(replace(small("RecGRELA"), dropout=0.3, drop_path=0.0), N_ITEMS, 20)
    transfer(source, target, rows)
    state = source.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())

"""First rows of new items, beside a plain computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from python_tests.models.forms import small
from recgrela.data.titles import similar_titles
from recgrela.models import SequenceModel, build
from recgrela.retrieval import ItemIndex
from recgrela.runs import new_items
from recgrela.runs.items import Items
from recgrela.runs.new_items import fill_rows, set_vectors
from recgrela.system.errors import DataError

KNOWN_TITLES = [None, "Toy Story", "Batman", None, "Batman Forever", "Star Wars", "Toy Soldiers"]
TITLES = [*KNOWN_TITLES, "Batman Begins", "toy"]
NEW, KNOWN = np.array([7, 8]), np.arange(1, 7)


def make(retired: tuple[int, ...] = (), titles: list[str | None] = TITLES) -> tuple[SequenceModel, Items]:
    torch.manual_seed(0)
    flags = np.isin(np.arange(len(titles)), retired)
    model = build(small("LRURec"), len(titles), 10)  # with an item bias
    with torch.no_grad():
        model.item_embedding.weight *= 50
    return model, Items([str(item) for item in range(len(titles))], titles, flags)


def test_the_mean_is_that_of_items_which_are_not_retired() -> None:
    model, items = make(retired=(2, 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fill_rows(model, items, NEW, KNOWN, "mean")
    for name, value in model.state_dict().items():
        if name in ("item_embedding.weight", "item_bias"):
            for item in NEW:
                torch.testing.assert_close(value[item], before[name][[1, 3, 4, 6]].mean(0))
            assert torch.equal(value[:7], before[name][:7])
        else:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize("chunk", [1, 4096])
def test_rows_by_similar_titles(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retired items count too; items without a title do not."""
    monkeypatch.setattr(new_items, "CHUNK", chunk)
    monkeypatch.setattr(new_items, "NEIGHBOURS", 2)
    model, items = make(retired=(2,))
    table, bias = model.item_embedding.weight.detach().clone(), model.item_bias.detach().clone()
    fill_rows(model, items, NEW, KNOWN, "titles")
    titled = [1, 2, 4, 5, 6]
    found = similar_titles(["Batman Begins", "toy"], [TITLES[item] for item in titled], 2)
    norm = table[1:7].norm(dim=1).median()
    for place, item in enumerate(NEW):
        sources = [titled[row] for row in found.rows[place]]
        assert set(sources) == ({2, 4} if place == 0 else {1, 6})
        cubes = found.cosines[place] ** 3
        weights = torch.tensor(cubes / cubes.sum()).float()
        mixed = weights @ table[sources]
        torch.testing.assert_close(model.item_embedding.weight[item].data, mixed * norm / mixed.norm())
        torch.testing.assert_close(model.item_bias[item].data, weights @ bias[sources])


def test_given_vectors_are_taken_as_they_are() -> None:
    model, items = make()
    bias = model.item_bias.detach().clone()
    vectors = torch.randn(2, 16)
    set_vectors(model, items, NEW, KNOWN, vectors)
    assert torch.equal(model.item_embedding.weight[NEW].data, vectors)
    torch.testing.assert_close(model.item_bias[7].data, bias[1:7].mean())
    with pytest.raises(DataError, match="vectors of width 8, but the model has rows of width 16"):
        set_vectors(model, items, NEW, KNOWN, vectors[:, :8])


@pytest.mark.parametrize("value", [1e38, 1e8, float("nan"), float("inf")])
def test_vectors_that_no_model_works_with_are_refused(value: float) -> None:
    model, items = make()
    before = model.item_embedding.weight.detach().clone()
    vectors = torch.randn(2, 16)
    vectors[1, 3] = value
    with pytest.raises(DataError, match="item '8': the vector has norm"):
        set_vectors(model, items, NEW, KNOWN, vectors)
    assert torch.equal(model.item_embedding.weight, before)
    vectors[1, 3] = 1e6
    set_vectors(model, items, NEW, KNOWN, vectors)
    index = ItemIndex(model.item_embedding.weight.detach())
    assert index.search(torch.eye(16)[3:4], 1)[0].item() == 8


def test_items_without_a_first_row_are_named() -> None:
    model, items = make(titles=[*KNOWN_TITLES, None, "toy"])
    with pytest.raises(DataError, match="item '7' has no title"):
        fill_rows(model, items, NEW, KNOWN, "titles")
    model, items = make(titles=[*KNOWN_TITLES, "toy", "xqz"])
    with pytest.raises(DataError, match="item '8': no title is similar to 'xqz'"):
        fill_rows(model, items, NEW, KNOWN, "titles")
    model, items = make(titles=[None] * 7 + ["toy", "toy"])
    with pytest.raises(DataError, match="the items that have rows have no titles"):
        fill_rows(model, items, NEW, KNOWN, "titles")
    model, items = make(retired=tuple(range(1, 7)))
    with pytest.raises(DataError, match="all are retired"):
        fill_rows(model, items, NEW, KNOWN, "mean")

from __future__ import annotations

import numpy as np
import pytest
import torch

from recgrela.data import Interactions


@pytest.fixture
def make_interactions():
    """Interactions with given numbers of events per user; each event has its own item or a random one."""

    def make(counts: list[int], n_items: int | None = None, seed: int = 0) -> Interactions:
        total = sum(counts)
        ids = (
            np.arange(1, total + 1)
            if n_items is None
            else np.random.default_rng(seed).integers(1, n_items, size=total)
        )
        n_items = n_items or total + 1
        return Interactions(
            items=torch.from_numpy(ids.astype(np.int32)),
            offsets=torch.from_numpy(np.concatenate(([0], np.cumsum(counts)))),
            user_ids=[f"u{row}" for row in range(len(counts))],
            item_ids=["[PAD]", *(f"i{row}" for row in range(1, n_items))],
            titles=None,
            n_items=n_items,
            sha256="",
            description={"source": "made by the test"},
        )

    return make

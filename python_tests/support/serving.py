"""Models, events and brute-force answers for tests of the service."""

from __future__ import annotations

import numpy as np
import torch

from recgrela.inference.recommender import Recommender
from recgrela.models import CONFIGS, build
from recgrela.nn.state import ModelState
from recgrela.runs.items import Items
from recgrela.store import Event, Store

ITEMS = 50  # with padding
MAX_LEN = 12


def make_items(n_items: int = ITEMS, retired: tuple[int, ...] = ()) -> Items:
    is_retired = np.zeros(n_items, dtype=bool)
    is_retired[list(retired)] = True
    tokens = ["[PAD]", *(f"i{item}" for item in range(1, n_items))]
    titles = [None, *(f"Title {item}" if item % 5 else None for item in range(1, n_items))]
    return Items(tokens, titles, is_retired)


def make_recommender(name: str = "RecGRELA", seed: int = 0, items: Items | None = None) -> Recommender:
    """An untrained model, whose weights are large enough that scores differ."""
    items = items or make_items()
    torch.manual_seed(seed)
    config = CONFIGS[name](hidden_size=16, num_layers=2)
    model = build(config, len(items.tokens), MAX_LEN).eval()
    with torch.no_grad():
        model.item_embedding.weight.mul_(20)
    return Recommender(model, items, history_len=10**6 if model.carries_state else MAX_LEN)


def random_events(
    rng: np.random.Generator, number: int, users: int = 5, items: int = ITEMS + 3, late: float = 0.2
) -> list[Event]:
    """Events of unknown and repeated items; some are late, some have ids of which some occur twice."""
    events = []
    for i in range(number):
        time = 100.0 + i - (rng.random() < late) * rng.integers(1, 30)
        id = f"id {rng.integers(number)}" if rng.random() < 0.3 else None
        events.append(Event(f"u{rng.integers(users)}", f"i{rng.integers(1, items)}", float(time), id))
    return events


def whole_state(recommender: Recommender, store: Store, user: str) -> ModelState:
    """The state after a user's log, in one pass."""
    ids = recommender.catalogue.ids([event.item for event in store.history(user)])
    items = torch.from_numpy(ids[ids > 0])
    return recommender.model.prefill(items, torch.tensor([0, len(items)]), len(items))[0]

"""The engine against a computation from whole histories."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from python_tests.support.serving import MAX_LEN, make_items, make_recommender, random_events, whole_state
from recgrela.inference.recommender import Recommender
from recgrela.models import streaming
from recgrela.serve import engine as engine_module
from recgrela.serve import folding
from recgrela.serve.engine import Engine
from recgrela.serve.queries import Found, NotFound, Query, Receipt
from recgrela.store import Event, Store
from recgrela.system.errors import DataError, RunError

MODELS = ["RecGRELA", "LRURec", "Mamba4Rec", "RecBLR", "SASRec", "SIGMA"]
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def add_all(engine: Engine, events: Sequence[Event], rng: np.random.Generator) -> None:
    """Adds events in batches of random sizes."""
    events = list(events)
    while events:
        size = int(rng.integers(1, 12))
        engine.add(events[:size])
        events = events[size:]


def assert_same_recommendations(found: Found, expected: dict[str, list[Any]]) -> None:
    assert [item.item for item in found.items] == expected["item"]
    assert [item.title for item in found.items] == expected["title"]
    np.testing.assert_allclose([item.score for item in found.items], expected["score"], **TOLERANCE)


def answer(engine: Engine, query: Query) -> Found:
    (found,) = engine.recommend([query])
    assert isinstance(found, Found), found
    return found


@pytest.mark.parametrize("name", MODELS)
def test_states_equal_those_of_whole_histories(name: str, store: Store) -> None:
    rng = np.random.default_rng(1)
    recommender = make_recommender(name)
    engine = Engine(recommender, store)
    add_all(engine, random_events(rng, 200), rng)
    for user in store.users():
        state = engine.folder.states([user])
        expected = whole_state(recommender, store, user)
        assert int(state["position"][0]) == int(expected["position"][0]) > MAX_LEN
        for tensor in expected:
            torch.testing.assert_close(state[tensor], expected[tensor], **TOLERANCE)
    # The stored states are those that were returned, and need no further work.
    before = vars(engine.folder.counts).copy()
    engine.rebuild()
    assert vars(engine.folder.counts) == before and before["steps"] > 0 and before["prefilled"] > 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_recommendations_equal_those_after_whole_histories(
    name: str, exclude_seen: bool, store: Store
) -> None:
    rng = np.random.default_rng(2)
    recommender = make_recommender(name)
    engine = Engine(recommender, store)
    add_all(engine, random_events(rng, 60), rng)
    users = sorted(store.users())
    histories = {user: [event.item for event in store.history(user)] for user in users}
    queries = [Query(user=user, k=7, exclude_seen=exclude_seen) for user in users]
    queries += [Query(history=tuple(histories[user]), k=7, exclude_seen=exclude_seen) for user in users]
    answers = engine.recommend(queries)
    for user, stored, given in zip(users, answers, answers[len(users) :], strict=False):
        expected = recommender.recommend(histories=[histories[user]], k=7, exclude_seen=exclude_seen)
        for found in (stored, given):
            assert isinstance(found, Found)
            assert_same_recommendations(found, expected.to_pydict())


def test_receipts(store: Store) -> None:
    engine = Engine(make_recommender(), store)
    events = [
        Event("a", "i1", 1.0, "x"),
        Event("a", "i1", 1.0, "x"),
        Event("a", "new", 2.0),
        Event("b", "i1", 1.0, "x"),
    ]
    assert engine.add(events) == [
        Receipt(stored=True, known=True),
        Receipt(stored=False, known=True),
        Receipt(stored=True, known=False),
        Receipt(stored=True, known=True),
    ]
    assert engine.add([]) == []
    assert answer(engine, Query(user="a")).length == 1


def test_an_invalid_event_stores_none(store: Store) -> None:
    engine = Engine(make_recommender(), store)
    with pytest.raises(DataError, match="event 1: item is empty"):
        engine.add([Event("a", "i1", 1.0), Event("a", "", 1.0)])
    assert list(store.users()) == []


def test_users_and_histories_without_known_items(store: Store) -> None:
    engine = Engine(make_recommender(), store)
    engine.add([Event("new items only", "new", 1.0)])
    answers = engine.recommend(
        [Query(user="nobody"), Query(user="new items only"), Query(history=("new",)), Query()]
    )
    assert [type(answer) for answer in answers] == [NotFound, NotFound, DataError, DataError]
    assert "'nobody'" in str(answers[0]) and "history" in str(answers[2])
    with pytest.raises(NotFound):
        engine.states(Query(user="nobody"))
    with pytest.raises(DataError, match="history"):
        engine.states(Query(history=("new",)))
    assert engine.recommend([]) == []


def test_items_that_a_later_model_knows_count(store: Store) -> None:
    small = make_recommender(items=make_items(30))
    large = make_recommender(items=make_items(40))
    engine = Engine(small, store)
    engine.add([Event("a", item, float(place)) for place, item in enumerate(["i1", "i35", "i2"])])
    assert answer(engine, Query(user="a")).length == 2
    later = Engine(large, store)
    assert answer(later, Query(user="a")).length == 3
    expected = large.recommend(histories=[["i1", "i35", "i2"]]).to_pydict()
    assert_same_recommendations(answer(later, Query(user="a")), expected)


def test_items_that_a_user_has_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users who have seen the best items get the next ones, after further searches if they must."""
    monkeypatch.setattr(engine_module, "MARGIN", 1)
    recommender = make_recommender()
    engine = Engine(recommender, store)
    best = [item.item for item in answer(engine, Query(history=("i1",), k=100)).items]
    assert len(best) == 48
    engine.add([Event("most", item, 1.0 + i) for i, item in enumerate([*best[:45], "i1"])])
    engine.add([Event("all", item, 1.0 + i) for i, item in enumerate([*best, "i1"])])
    engine.add([Event("few", "i1", 1.0)])
    answers = engine.recommend([Query(user=user, k=4) for user in ("most", "all", "few", "most")])
    assert [len(found.items) for found in answers if isinstance(found, Found)] == [3, 0, 4, 3]
    most = answers[0]
    assert isinstance(most, Found) and {item.item for item in most.items} == set(best[45:])


def test_allowed_denied_and_retired_items(store: Store) -> None:
    recommender = make_recommender(items=make_items(retired=(5, 6)))
    engine = Engine(recommender, store)
    engine.add([Event("a", "i1", 1.0)])
    everything = [item.item for item in answer(engine, Query(user="a", k=100)).items]
    assert len(everything) == 46 and not {"i1", "i5", "i6"} & set(everything)
    some = ("i5", "i9", "i1", "unknown", "i7")
    queries = [
        Query(user="a", allow=some),
        Query(user="a", allow=some, exclude_seen=False, k=2),
        Query(user="a", deny=(*everything[:3], "unknown"), k=2),
        Query(user="a", allow=("i5", "unknown")),
        Query(history=("i1",), allow=some, deny=("i7",)),
        Query(user="a", k=1),
    ]
    found = engine.recommend(queries)
    names = [[item.item for item in one.items] if isinstance(one, Found) else str(one) for one in found]
    assert set(names[0]) == {"i9", "i7"} and names[0] == [item for item in everything if item in names[0]]
    assert set(names[1]) < {"i1", "i7", "i9"}
    assert names[2] == everything[3:5]
    assert "none of the model's items may be recommended" in names[3]
    assert names[4] == ["i9"]
    assert names[5] == everything[:1]


def test_similar_items(recommender: Recommender, store: Store) -> None:
    engine = Engine(recommender, store)
    item = recommender.item_ids[3]
    expected = recommender.similar_items([item], 5).to_pydict()
    assert [one.item for one in engine.similar(item, 5)] == expected["similar"]
    with pytest.raises(NotFound, match="'none' is not among"):
        engine.similar("none", 5)


@pytest.mark.parametrize("name", ["RecGRELA", "SASRec"])
def test_passes_of_bounded_memory(name: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small passes give the states of large ones."""
    rng = np.random.default_rng(3)
    recommender = make_recommender(name)
    store.append(random_events(rng, 300, users=20))
    whole = Engine(recommender, store)
    users = sorted(store.users())
    expected, _ = whole.folder.hidden(users)
    store.drop_states(None)
    for module in (streaming, folding):
        monkeypatch.setattr(module, "PREFILL_ROWS", 4)
    monkeypatch.setitem(folding.MAX_SLOTS, "cpu", 16)
    monkeypatch.setattr(folding, "USERS_PER_PASS", 7)
    done: list[int] = []
    engine = Engine(recommender, store)
    assert engine.rebuild(done.append) == len(users) and done == [7, 14, 20]
    counts = vars(engine.folder.counts).copy()
    hidden, _ = engine.folder.hidden(users)
    torch.testing.assert_close(hidden, expected, **TOLERANCE)
    assert vars(engine.folder.counts) == counts  # all states were stored


def test_states_in_half_the_bytes(store: Store) -> None:
    rng = np.random.default_rng(4)
    recommender = make_recommender()
    events = random_events(rng, 200, late=0)
    half = Engine(recommender, store, "bfloat16")
    add_all(half, events, rng)
    exact = Engine(recommender, store)
    assert half.key != exact.key
    users = sorted(store.users())
    similarity = F.cosine_similarity(half.folder.hidden(users)[0], exact.folder.hidden(users)[0])
    assert (similarity > 0.99).all()
    sizes = {len(store.load(engine.key, [users[0]])[0].state or b"") for engine in (half, exact)}
    assert max(sizes) > 1.8 * min(sizes)


def test_events_are_acknowledged_without_their_states(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(make_recommender(), store)

    def full(*_: Any) -> None:
        raise RunError("no space left")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(store, "save", full)
        assert engine.add([Event("a", "i1", 1.0)]) == [Receipt(True, True)]
        assert answer(engine, Query(user="a")).length == 1  # reads do not need to write
        assert engine.folder.counts.unsaved == 2 and "no space left" in caplog.text
        patch.setattr(store, "load", full)
        assert engine.add([Event("a", "i2", 2.0)]) == [Receipt(True, True)]
        with pytest.raises(RunError):
            engine.recommend([Query(user="a")])
    assert answer(engine, Query(user="a")).length == 2


def test_engines_of_two_servers_on_one_store(store: Store) -> None:
    rng = np.random.default_rng(5)
    recommender = make_recommender()
    engines = [Engine(recommender, store), Engine(make_recommender(), store)]
    assert engines[0].key == engines[1].key
    for event in random_events(rng, 120, users=3):
        engines[rng.integers(2)].add([event])
    for user in store.users():
        for engine in engines:
            expected = whole_state(recommender, store, user)
            torch.testing.assert_close(engine.folder.hidden([user])[0], expected["hidden"], **TOLERANCE)


def test_the_key_of_states(store: Store) -> None:
    key = Engine(make_recommender(), store).key
    assert Engine(make_recommender(), store).key == key
    assert Engine(make_recommender(seed=1), store).key != key
    renamed = make_items()
    renamed.tokens[3], renamed.tokens[4] = renamed.tokens[4], renamed.tokens[3]
    assert Engine(make_recommender(items=renamed), store).key != key


# ---- norms of states and gates


def test_norms_of_states_and_gates(store: Store) -> None:
    recommender = make_recommender()
    engine = Engine(recommender, store)
    history = tuple(f"i{item}" for item in (3, 1, 4, 1, 5))
    engine.add([Event("a", item, float(place)) for place, item in enumerate(history)])
    stored, given = engine.states(Query(user="a")), engine.states(Query(history=history))
    assert [layer.name for layer in stored] == ["blocks.0.attention", "blocks.1.attention"]
    state = whole_state(recommender, store, "a")
    for layer, same in zip(stored, given, strict=True):
        expected = (state[f"{layer.name}.kv_state"][0] / 5).flatten(1).norm(dim=1).tolist()
        assert layer.state == pytest.approx(expected, rel=1e-3)
        assert layer.state == pytest.approx(same.state, rel=1e-3)
        assert layer.gate == pytest.approx(same.gate, rel=1e-3) and len(layer.gate or []) == 4
    model: Any = recommender.model
    block = model.blocks[0]
    with torch.no_grad():  # the input of the first layer is the embedding alone
        x = F.layer_norm(model.item_embedding.weight[[5]], (16,), model.norm.weight, model.norm.bias, 1e-12)
        rows = F.layer_norm(x, (16,), block.norm1.weight, block.norm1.bias, 1e-12)
        gate = F.silu(F.linear(rows, block.attention.gate_proj.weight, block.attention.gate_proj.bias))
    assert given[0].gate == pytest.approx(gate.view(4, 4).square().mean(1).sqrt().tolist(), rel=1e-3)


def test_norms_of_other_models(store: Store) -> None:
    for name in ("LRURec", "Mamba4Rec", "RecBLR"):
        layers = Engine(make_recommender(name), store).states(Query(history=("i1", "i2")))
        assert len(layers) == 2 and all(len(layer.state) == 1 and layer.gate is None for layer in layers)
    assert Engine(make_recommender("SASRec"), store).states(Query(history=("i1", "i2"))) == []

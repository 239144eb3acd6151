"""recgrela.Recommender: recommendations, scores and vectors against plain scores of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import recgrela
from python_tests.support.defaults import check_every_default
from python_tests.support.runs import edit_protocol
from recgrela import Recommender
from recgrela.inference import encoding
from recgrela.models import MODELS, build
from recgrela.runs.items import read_items, write_items
from recgrela.runs.saved import load_data, load_run
from recgrela.system.errors import ConfigError, DataError, RunError

CPU = torch.device("cpu")


def tokens_of(recommender: Recommender, *items: int) -> list[str]:
    return [recommender.catalogue.items.tokens[item] for item in items]


def plain_scores(recommender: Recommender, history: list[int]) -> torch.Tensor:
    """The scores of all items after a history, from the model alone."""
    with torch.no_grad():
        return recommender.model.score(torch.tensor([history]), torch.tensor([len(history)]))[0]


def plain_order(recommender: Recommender, history: list[int]) -> list[int]:
    order = plain_scores(recommender, history).argsort(descending=True, stable=True).tolist()
    return [item for item in order if item != 0]


def test_the_highest_scores_are_recommended(recommender: Recommender) -> None:
    history = [3, 9, 4]
    order = plain_order(recommender, history)
    given = {"someone": tokens_of(recommender, *history)}
    found = recommender.recommend(histories=given, k=5, exclude_seen=False)
    assert found["item"].to_pylist() == tokens_of(recommender, *order[:5])
    assert found["user"].to_pylist() == ["someone"] * 5 and found["rank"].to_pylist() == [1, 2, 3, 4, 5]
    scores = plain_scores(recommender, history)[order[:5]].tolist()
    assert found["score"].to_pylist() == pytest.approx(scores, rel=1e-5)
    titles = [recommender.catalogue.items.titles[item] for item in order[:5]]
    assert found["title"].to_pylist() == titles
    unseen = [item for item in order if item not in history]
    every = recommender.recommend(histories=given, k=10**9)
    assert every["item"].to_pylist() == tokens_of(recommender, *unseen)


def test_recommendations_do_not_depend_on_defaults(recommender: Recommender) -> None:
    given = {"someone": tokens_of(recommender, 3, 9, 4)}

    def results() -> dict[str, torch.Tensor]:
        best = recommender.recommend(histories=given, k=5)["score"].to_numpy().copy()
        scores = recommender.score(given, tokens_of(recommender, 1, 2))
        return {"best": torch.from_numpy(best), "scores": torch.from_numpy(scores)}

    check_every_default(results)


def test_all_users_equal_each_user_alone(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    """However users are cut into batches and passes."""
    monkeypatch.setattr("recgrela.inference.recommender.USERS_AT_A_TIME", 7)
    monkeypatch.setitem(encoding.MAX_SLOTS, "cpu", 60)
    every = recommender.recommend(k=3)
    users = recommender.histories.users
    assert every["user"].to_pylist() == [user for user in users for _ in range(3)]
    for row in (0, 8, len(users) - 1):
        history = recommender.histories.of(row)
        order = plain_order(recommender, history[-recommender.model.max_len :].tolist())
        best = [item for item in order if item not in history][:3]
        assert every["item"].to_pylist()[3 * row : 3 * row + 3] == tokens_of(recommender, *best)
    two = recommender.recommend([users[5], users[2]], k=3)
    assert two["user"].to_pylist() == [users[5]] * 3 + [users[2]] * 3
    assert two["item"].to_pylist()[:3] == every["item"].to_pylist()[15:18]


def test_only_the_end_of_a_long_history_is_used_but_all_of_it_is_seen(recommender: Recommender) -> None:
    tail = [1 + i % 7 for i in range(recommender.history_len)]
    long = tokens_of(recommender, 20, 21, 22, *tail)
    short = recommender.recommend(histories=[tokens_of(recommender, *tail)], exclude_seen=False, k=100)
    assert recommender.recommend(histories=[long], exclude_seen=False, k=100).equals(short)
    unseen = recommender.recommend(histories=[long], k=100)["item"].to_pylist()
    assert not set(unseen) & set(long) and len(unseen) == len(short) - 10


def test_allowed_and_denied_items(recommender: Recommender) -> None:
    history = [tokens_of(recommender, 5, 6)]
    best = recommender.recommend(histories=history, k=6)["item"].to_pylist()
    assert recommender.recommend(histories=history, k=3, deny=best[:3])["item"].to_pylist() == best[3:]
    allow = [best[4], "no such item", best[1]]
    assert recommender.recommend(histories=history, allow=allow)["item"].to_pylist() == [best[1], best[4]]
    with pytest.raises(DataError, match="none of the model's items may be recommended"):
        recommender.recommend(histories=history, allow=["no such item"])


def test_retired_items_are_kept_and_never_recommended(copy: Path) -> None:
    before = Recommender.load(copy, device="cpu")
    history = [tokens_of(before, 3, 9, 4)]
    best = before.recommend(histories=history, k=5)["item"].to_pylist()
    path = before.run.folder.items_path if before.run else None
    assert path is not None
    items = read_items(path, before.model.n_items)
    items.retired[before.catalogue.ids(best[:2])] = True
    items.retired[9] = True
    write_items(path, items)
    after = Recommender.load(copy, device="cpu")
    assert np.array_equal(after.catalogue.items.retired, items.retired)
    assert after.recommend(histories=history, k=3)["item"].to_pylist() == best[2:]
    assert np.array_equal(after.user_vectors(histories=history), before.user_vectors(histories=history))


# ---- histories


def test_unknown_items_are_skipped(recommender: Recommender) -> None:
    known = tokens_of(recommender, 3, 9)
    found = recommender.select(histories=[[known[0], "unknown", known[1]], known])
    assert found.skipped_items.tolist() == [1, 0] and found.take(np.array([1])).skipped == 0
    assert found.of(0).tolist() == found.of(1).tolist() == [3, 9]


def test_histories_come_from_todays_events(finished_run: Path, tmp_path: Path) -> None:
    """New users and grown histories, without the filter of the training data, as a table or a path."""
    loaded = Recommender.load(finished_run, device="cpu")
    a, b, c = tokens_of(loaded, 4, 7, 11)
    columns = {"user_id": ["new", "new", "old", "new"], "item_id": [b, a, c, "never seen"]}
    table = pa.table(columns | {"timestamp": [20, 10, 5, 30]})
    loaded.read_events(table)
    assert loaded.histories.users == ["new", "old"] and loaded.histories.skipped == 1
    assert loaded.histories.of(0).tolist() == [4, 7] and loaded.histories.of(1).tolist() == [11]
    path = tmp_path / "today.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"new,{x},{i}\n" for i, x in enumerate((a, b))))
    again = Recommender.load(finished_run, events=path, device="cpu")
    assert again.recommend(["new"], k=4).equals(loaded.recommend(["new"], k=4))


def test_changed_data_of_the_run_is_no_obstacle(copy: Path) -> None:
    """Unlike in evaluate, whose figures must be those of the run's data."""
    edit_protocol(copy, lambda content: content["data"].update(sha256="0" * 64))
    assert Recommender.load(copy, device="cpu").recommend(k=1).num_rows > 0


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([[]], "user '0': the history has no item that the model knows"),
        ([["1"], ["unknown"], []], "user '1' and 1 others: the history has no item"),
        (["123"], "the history of '0': expected a list of ids, got '123'"),
        ([3, 14], "the history of '0': expected a list of ids, got 3"),
        ("123", "histories: expected a list of histories, got '123'"),
        ([[1.5]], "the history of '0': the id 1.5 is neither text nor a whole number"),
        ([["\ud800"]], "is not valid text"),
    ],
)
def test_bad_histories(recommender: Recommender, histories: Any, message: str) -> None:
    if histories == [["1"], ["unknown"], []]:
        histories = [tokens_of(recommender, 1), *histories[1:]]
    with pytest.raises((ConfigError, DataError), match=message):
        recommender.recommend(histories=histories)


def test_ids_may_be_numbers_and_arrays(recommender: Recommender) -> None:
    """Of Python, NumPy and Arrow, in every argument; generators too."""
    user = recommender.histories.users[4]
    best = recommender.recommend([user], k=3)["item"].to_pylist()
    expected = recommender.recommend([user], deny=best)
    assert user.isdigit() and all(item.isdigit() for item in best)
    for deny in (list(map(int, best)), np.array(list(map(int, best))), pa.array(best), iter(best)):
        assert recommender.recommend([int(user)], deny=deny).equals(expected)
    assert recommender.recommend(np.array([int(user)]), k=np.int64(3))["item"].to_pylist() == best
    history = (int(item) for item in best)
    assert recommender.recommend(histories=[history], k=1).num_rows == 1
    assert recommender.recommend([user], allow=pa.chunked_array([best]))["item"].to_pylist() == best


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.recommend("12"), "users: expected a list of ids, got '12'"),
        (lambda r: r.recommend(["7"], deny="291"), "deny: expected a list of ids"),
        (lambda r: r.recommend(["7"], allow=5), "allow: expected a list of ids, got 5"),
        (lambda r: r.similar_items("14"), "items: expected a list of ids, got '14'"),
        (lambda r: r.similar_items(["14"], k=0), "k: 0 is below 1"),
        (lambda r: r.recommend(["7"], k="2"), "k: '2' is not a whole number"),
        (lambda r: Recommender(r.model, r.catalogue.items, history_len=0), "history_len: 0 is below 1"),
        (lambda r: Recommender(r.model, r.catalogue.items, precision="int4"), "precision: 'int4' is not one"),
        (
            lambda r: Recommender.load(r.run.folder.path, checkpoint="bets"),
            "checkpoint: 'bets' is not one of",
        ),
        (lambda r: r.read_events([{"user": 1}]), "the events are neither a path nor a table"),
    ],
)
def test_arguments_are_checked_at_once(
    recommender: Recommender, call: Callable[[Recommender], object], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        call(recommender)


def test_half_precision_is_refused() -> None:
    model = build(MODELS["LRURec"].config(hidden_size=16, num_layers=1), 12, 10).bfloat16()
    with pytest.raises(ConfigError, match=r"the model is in half precision; convert it by model.float\(\)"):
        Recommender(model, read_names(12))


def test_vectors_are_copies(recommender: Recommender) -> None:
    before = recommender.recommend(k=3)
    vectors = recommender.item_vectors()
    vectors *= -1
    assert recommender.recommend(k=3).equals(before)


def test_unknown_users_and_items(recommender: Recommender) -> None:
    user, item = recommender.histories.users[3], tokens_of(recommender, 4)[0]
    with pytest.raises(DataError, match=rf"user '{user}x' is not in the data; did you mean"):
        recommender.recommend([f"{user}x"])
    with pytest.raises(DataError, match=rf"item '{item}x' is not among the model's \d+ items; did you mean"):
        recommender.similar_items([f"{item}x"])
    with pytest.raises(DataError, match=rf"is a title; use its id '{item}'"):
        recommender.item_vectors([str(recommender.catalogue.items.titles[4])])
    with pytest.raises(DataError, match="not among"):
        recommender.item_vectors(["[PAD]"])
    with pytest.raises(ConfigError, match="users or histories, not both"):
        recommender.recommend([user], histories=[[item]])
    with pytest.raises(ConfigError, match="k: 0 is below 1"):
        recommender.recommend([user], k=0)


# ---- scores and vectors


def test_scores_are_products_of_vectors(recommender: Recommender) -> None:
    histories, items = [tokens_of(recommender, 3, 4), tokens_of(recommender, 8)], tokens_of(recommender, 6, 2)
    scores = recommender.score(histories, items)
    assert scores.shape == (2, 2) and scores.dtype == np.float32
    expected = plain_scores(recommender, [3, 4])[[6, 2]].numpy()
    assert scores[0] == pytest.approx(expected, rel=1e-5)
    products = recommender.user_vectors(histories=histories) @ recommender.item_vectors(items).T
    assert scores == pytest.approx(products, rel=1e-5)
    assert recommender.item_vectors().shape == (len(recommender.item_ids), 16)


def test_item_bias_is_part_of_scores() -> None:
    model = build(MODELS["LRURec"].config(hidden_size=16, num_layers=1), 12, 10)
    items = read_names(12)
    recommender = Recommender(model, items)
    history = [["i3", "i4"]]
    scores = recommender.score(history, items.tokens[1:])[0]
    assert scores == pytest.approx(
        plain_scores(Recommender(model.eval(), items), [3, 4])[1:].numpy(), rel=1e-5
    )
    best = recommender.recommend(histories=history, exclude_seen=False, k=1)["item"][0].as_py()
    assert best == items.tokens[1 + int(scores.argmax())]


def test_similar_items_have_the_highest_cosines(recommender: Recommender) -> None:
    vectors = recommender.item_vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit[4]
    cosines[4] = -2
    found = recommender.similar_items(tokens_of(recommender, 5), k=3)
    assert found["similar"].to_pylist() == tokens_of(recommender, *(np.argsort(-cosines)[:3] + 1))
    assert found["score"].to_pylist() == pytest.approx(np.sort(cosines)[::-1][:3], rel=1e-5)
    assert found.column_names == ["item", "rank", "similar", "title", "score"]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_both_precisions_find_the_same(finished_run: Path, recommender: Recommender, precision: str) -> None:
    other = Recommender.load(finished_run, device="cpu", precision=precision)
    assert other.recommend(k=10).equals(recommender.recommend(k=10))


# ---- the model, saving, training


def read_names(count: int) -> recgrela.runs.items.Items:
    return recgrela.runs.items.Items(
        ["[PAD]", *(f"i{item}" for item in range(1, count))], [None] * count, np.zeros(count, dtype=bool)
    )


def test_the_model_is_used_in_eval_mode_and_keeps_its_own() -> None:
    model = build(MODELS["RecGRELA"].config(hidden_size=16, num_heads=2, num_layers=2, dropout=0.5), 12, 10)
    recommender, history = Recommender(model.train(), read_names(12)), [["i3", "i4"]]
    first = recommender.user_vectors(histories=history)
    assert np.array_equal(first, recommender.user_vectors(histories=history)) and model.training
    model.eval()
    recommender.user_vectors(histories=history)
    assert not model.training
    with pytest.raises(RunError, match="this Recommender has no users; call read_events, or give histories"):
        recommender.recommend()
    with pytest.raises(ConfigError, match="the model has 12 items, but 11 are given"):
        Recommender(model, read_names(11))


def test_data_gives_items_and_histories(finished_run: Path, recommender: Recommender) -> None:
    saved = load_run(finished_run, None, CPU)
    made = Recommender(saved.model, load_data(saved), history_len=recommender.history_len)
    assert made.recommend(k=2).equals(recommender.recommend(k=2))


def test_saved_folders_load_again(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save(tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["best.safetensors", "config.yaml", "items.parquet", "protocol.json"]
    loaded = Recommender.load(tmp_path / "model", device="cpu")
    assert loaded.recommend(k=2).equals(recommender.recommend(k=2))
    assert loaded.fingerprint == recommender.fingerprint
    with pytest.raises(RunError, match="the name is taken"):
        recommender.save(tmp_path / "model")


def test_the_fingerprint_changes_with_weights_and_settings() -> None:
    config = MODELS["RecGRELA"].config(hidden_size=16, num_heads=2, num_layers=1)
    torch.manual_seed(0)
    model = build(config, 12, 10)
    prints = {Recommender(model, read_names(12)).fingerprint for _ in range(2)}
    other = build(replace(config, eps=1e-5), 12, 10)
    other.load_state_dict(model.state_dict())
    prints.add(Recommender(other, read_names(12)).fingerprint)
    with torch.no_grad():
        model.item_embedding.weight[3, 2] += 1e-3
    prints.add(Recommender(model, read_names(12)).fingerprint)
    assert len(prints) == 3


def test_weights_that_are_not_finite_are_refused() -> None:
    model = build(MODELS["RecGRELA"].config(hidden_size=16, num_heads=2, num_layers=1), 12, 10)
    with torch.no_grad():
        model.item_embedding.weight[3] = torch.nan
    with pytest.raises(RunError, match=r"the model cannot recommend: .*weight has NaN"):
        Recommender(model, read_names(12)).recommend(histories=[["i4"]])


def test_fit_trains_a_run_on_a_table(tmp_path: Path) -> None:
    users = np.repeat(np.arange(20), 8)
    random = np.random.default_rng(0)
    table = pa.table(
        {"user": users, "item": random.integers(0, 9, len(users)), "at": np.arange(len(users)), "more": users}
    )
    settings = {
        "data.user_column": "user",
        "data.item_column": "item",
        "data.time_column": "at",
        "model.hidden_size": 16,
        "model.num_heads": 2,
        "model.num_layers": 1,
        "train.epochs": 1,
        "train.output": str(tmp_path),
        "train.name": "fitted",
        "train.device": "cpu",
        "train.tensorboard": "off",
    }
    fitted = Recommender.fit(table, settings)
    assert fitted.run is not None and fitted.run.folder.path == tmp_path / "fitted"
    assert fitted.recommend(["3"], k=2).num_rows == 2
    load_data(fitted.run)  # the table was stored, so the run can be evaluated
    with pytest.raises(DataError, match="no column 'timestamp' among 'user', 'item', 'at', 'more'"):
        Recommender.fit(table, settings | {"data.time_column": "timestamp", "train.name": "other"})

"""The HTTP contract: answers."""

from __future__ import annotations

import json
import time

import pytest
from fastapi.testclient import TestClient

from python_tests.serve.clients import error_of
from recgrela.inference.recommender import Recommender
from recgrela.serve import schemas

# ---- answers


def test_events_and_recommendations(client: TestClient, recommender: Recommender) -> None:
    first, second, third = recommender.item_ids[:3]
    one = client.post("/events", json={"user": 7, "item": first, "time": 1.5})
    assert one.status_code == 200
    assert one.json() == {"receipts": [{"stored": True, "known": True}]}
    many = [
        {"user": "7", "item": second, "id": "k"},
        {"user": "7", "item": second, "id": "k"},
        {"user": "7", "item": "?"},
    ]
    receipts = schemas.EventsOut.model_validate(client.post("/events", json=many).json()).receipts
    assert [(r.stored, r.known) for r in receipts] == [(True, True), (False, True), (True, False)]
    answer = client.get("/users/7/recommendations", params={"k": 5})
    found = schemas.RecommendOut.model_validate(answer.json())
    expected = recommender.recommend(histories=[[first, second]], k=5).to_pydict()
    assert [item.item for item in found.items] == expected["item"] and found.length == 2
    assert [item.title for item in found.items] == expected["title"]
    assert [item.score for item in found.items] == pytest.approx(expected["score"], abs=1e-5)
    assert (
        client.post("/recommendations", json={"items": [first, "?", second], "k": 5}).json() == answer.json()
    )
    assert client.post("/recommendations", json={"user": 7, "k": 5}).json() == answer.json()
    seen = client.get("/users/7/recommendations", params={"k": 40, "exclude_seen": "false"}).json()["items"]
    assert {first, second} < {item["item"] for item in seen}
    some = client.post("/recommendations", json={"user": "7", "allow": [third, first, "?"]}).json()["items"]
    assert [item["item"] for item in some] == [third]
    events = schemas.HistoryOut.model_validate(client.get("/users/7/history").json()).events
    assert [(event.item, event.known) for event in events] == [(first, True), (second, True), ("?", False)]
    assert events[0].time == 1.5 and abs(events[2].time - time.time()) < 60
    assert client.get("/users/7/history", params={"limit": 1}).json()["events"] == [vars(events[2])]


def test_ids_with_slashes_and_other_letters(reader: TestClient) -> None:
    for path in ("recommendations", "history", "states"):
        assert reader.get(f"/users/a%2Fb%20%C3%A9/{path}").status_code == 200
        assert "'a/b'" in error_of(reader.get(f"/users/a%2Fb/{path}"), 404)


def test_items(reader: TestClient, recommender: Recommender) -> None:
    item, title = recommender.item_ids[0], recommender.catalogue.items.titles[1]
    expected = {"item": item, "title": title, "retired": False}
    assert reader.get(f"/items/{item}").json() == expected
    assert schemas.ItemsOut.model_validate(reader.get("/items").json()).items[0].item == item
    assert (
        expected in reader.get("/items", params={"query": str(title).upper(), "limit": 100}).json()["items"]
    )
    assert len(reader.get("/items", params={"query": "item", "limit": 7}).json()["items"]) == 7
    assert reader.get("/items", params={"query": "%.*"}).json() == {"items": []}
    assert reader.get("/items", params={"query": item}).json()["items"][0]["item"] == item
    similar = schemas.SimilarOut.model_validate(reader.get(f"/items/{item}/similar?k=3").json()).items
    assert [one.item for one in similar] == recommender.similar_items([item], 3)["similar"].to_pylist()


def test_states(reader: TestClient, recommender: Recommender) -> None:
    given = reader.post("/states", json={"items": recommender.item_ids[:4]})
    layers = schemas.StatesOut.model_validate(given.json()).layers
    assert [len(layer.state) for layer in layers] == [2, 2] and all(layer.gate for layer in layers)
    assert [layer["name"] for layer in reader.get("/users/a%2Fb%20%C3%A9/states").json()["layers"]] == [
        layer.name for layer in layers
    ]


def test_health_and_metrics(reader: TestClient) -> None:
    health = schemas.HealthOut.model_validate(reader.get("/health").json())
    assert health.live and health.ready and health.items == 40 and "best.safetensors" in health.checkpoint
    assert reader.get("/health/live").json() == {"live": True}
    error_of(reader.get("/no/such/route"), 404)
    metrics = reader.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    for line in (
        'recgrela_requests_total{method="POST",route="/events",status="200"} 1.0',
        'recgrela_request_seconds_count{route="/events"} 1.0',
        'recgrela_events_total{outcome="stored"} 4.0',
        'recgrela_batch_size_sum{kind="events"} 4.0',
        'recgrela_state_items_total{how="prefill"} 4.0',
        "recgrela_states_unsaved_total 0.0",
        "recgrela_queue 0.0",
        f'recgrela_model{{checkpoint="best",key="{health.model}"}} 1.0',
        'route="none"',
    ):
        assert line in metrics.text


def test_pages(reader: TestClient) -> None:
    for path, kind in (
        ("/", "html"),
        ("/app.js", "javascript"),
        ("/style.css", "css"),
        ("/docs", "html"),
        ("/docs.js", "javascript"),
    ):
        page = reader.get(path)
        assert page.status_code == 200 and kind in page.headers["content-type"] and len(page.text) > 300
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert (
            "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
            and "https://" not in page.text
        )


def test_documentation(reader: TestClient) -> None:
    api = reader.get("/openapi.json").json()
    assert {f"{method} {path}" for path, methods in api["paths"].items() for method in methods} == {
        *(
            "post /events",
            "get /users/{user}/recommendations",
            "post /recommendations",
            "get /users/{user}/history",
        ),
        *(
            "get /users/{user}/states",
            "post /states",
            "get /items",
            "get /items/{item}",
            "get /items/{item}/similar",
        ),
        *("get /health", "get /health/live", "get /metrics", "post /reload"),
    }
    for name in ("EventIn", "RecommendIn", "HistoryIn"):
        for example in api["components"]["schemas"][name]["examples"]:
            getattr(schemas, name).model_validate(example)
    described = [m for methods in api["paths"].values() for m in methods.values()]
    assert all(method["description"] for method in described)
    # FastAPI's own form of validation errors is not what the server sends.
    assert "HTTPValidationError" not in json.dumps([method["responses"] for method in described])

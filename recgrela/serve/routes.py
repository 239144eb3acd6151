"""The routes of the service."""

from __future__ import annotations

import logging
import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Path, Query, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from recgrela.serve import schemas as s
from recgrela.serve.batching import AddJob, CallJob, QueryJob
from recgrela.serve.engine import Engine
from recgrela.serve.limits import JsonRoute
from recgrela.serve.queries import Found, NotFound, Scored
from recgrela.serve.queries import Query as EngineQuery
from recgrela.serve.reload import checkpoint_name
from recgrela.serve.service import Service
from recgrela.store import Event
from recgrela.system.errors import RunError

logger = logging.getLogger(__name__)

User = Annotated[s.Id, Path(description="Id of a user.")]
Item = Annotated[s.Id, Path(description="Id of an item.")]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": s.ErrorOut, "description": text}
    for status, text in {
        400: "The body is not JSON.",
        401: "The token is missing or wrong.",
        404: "The user has no events, or the item is unknown.",
        413: "The body is too large.",
        415: "The body is not declared as JSON.",
        422: "A value is missing, wrong or out of range.",
        503: "Too many requests are waiting, the store cannot be used, or the server is stopping.",
        507: "The disk of the store is full.",
    }.items()
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of errors."""
    return {status: ERRORS[status] for status in (401, *statuses)}


BODY = (400, 413, 415, 422, 503)


def make_router(service: Service) -> APIRouter:
    """All routes that have a place in the documentation."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/events", tags=["events"], response_model=s.EventsOut, responses=errors(*BODY, 507))
    async def add_events(events: Annotated[s.EventsIn, Body()]) -> Response:
        """Store an event or a list of up to 1,000 events.

        They are on disk when the answer arrives. An event with an `id` may be sent again after an error
        without being doubled. Events may arrive out of order: they are inserted by their time.
        """
        now = time.time()
        many = events if isinstance(events, list) else [events]
        made = [Event(e.user, e.item, now if e.time is None else e.time, e.id) for e in many]
        receipts = await service.ask(AddJob(made))
        return JSONResponse({"receipts": [{"stored": r.stored, "known": r.known} for r in receipts]})

    @router.get(
        "/users/{user:path}/recommendations",
        tags=["recommendations"],
        response_model=s.RecommendOut,
        responses=errors(404, 422, 503),
    )
    async def recommend_to_user(
        user: User,
        k: Annotated[s.K, Query()] = 10,
        exclude_seen: Annotated[bool, Query(description="Exclude items of the history.")] = True,
    ) -> Response:
        """Recommend items to a stored user, from the whole history up to now."""
        return await answer(EngineQuery(user=user, k=k, exclude_seen=exclude_seen))

    @router.post(
        "/recommendations",
        tags=["recommendations"],
        response_model=s.RecommendOut,
        responses=errors(*BODY, 404),
    )
    async def recommend(body: s.RecommendIn) -> Response:
        """Recommend items after a history that is not stored, or to a stored user among some items only."""
        query = EngineQuery(
            user=body.user,
            history=tuple(body.items or ()),
            k=body.k,
            exclude_seen=body.exclude_seen,
            allow=None if body.allow is None else tuple(body.allow),
            deny=tuple(body.deny),
        )
        return await answer(query)

    async def answer(query: EngineQuery) -> Response:
        found: Found = await service.ask(QueryJob(query))
        return JSONResponse({"items": scored(found.items), "length": found.length})

    @router.post("/states", tags=["states"], response_model=s.StatesOut, responses=errors(*BODY))
    async def states(body: s.HistoryIn) -> Response:
        """Norms of the model's states and gates after a history that is not stored."""
        return await layers(EngineQuery(history=tuple(body.items)))

    @router.get(
        "/users/{user:path}/states",
        tags=["states"],
        response_model=s.StatesOut,
        responses=errors(404, 422, 503),
    )
    async def states_of_user(user: User) -> Response:
        """Norms of a stored user's states, and of the gates at the last item."""
        return await layers(EngineQuery(user=user))

    async def layers(query: EngineQuery) -> Response:
        found = await service.ask(CallJob(lambda engine: engine.states(query)))
        return JSONResponse({"layers": [vars(layer) for layer in found]})

    @router.get(
        "/users/{user:path}/history",
        tags=["events"],
        response_model=s.HistoryOut,
        responses=errors(404, 422, 503),
    )
    async def history(
        user: User, limit: Annotated[int, Query(ge=1, le=1000, description="Number of last events.")] = 100
    ) -> Response:
        """The last events of a user, oldest first."""
        events = await run_in_threadpool(service.store.history, user, limit)
        if not events:
            raise NotFound(f"user {user!r} has no events")
        catalogue = service.engine.catalogue
        rows = []
        for event in events:
            item = catalogue.index.get(event.item, 0)
            title = catalogue.items.titles[item] if item else None
            rows.append({"item": event.item, "title": title, "time": event.time, "known": item > 0})
        return JSONResponse({"events": rows})

    @router.get("/items", tags=["items"], response_model=s.ItemsOut, responses=errors(422))
    async def find_items(
        query: Annotated[str, Query(max_length=s.MAX_ID, description="A part of an id or title.")] = "",
        limit: Annotated[int, Query(ge=1, le=100, description="Number of items.")] = 20,
    ) -> Response:
        """Search items by id and title, without regard to case; without a text, the first items."""
        found = await run_in_threadpool(service.search.find, query, limit)
        return JSONResponse({"items": [item_of(service.engine, item) for item in found]})

    @router.get(
        "/items/{item:path}/similar",
        tags=["items"],
        response_model=s.SimilarOut,
        responses=errors(404, 422, 503),
    )
    async def similar(item: Item, k: Annotated[s.K, Query()] = 10) -> Response:
        """The items whose vectors have the highest cosine with that of an item."""
        found = await service.ask(CallJob(lambda engine: engine.similar(item, k)))
        return JSONResponse({"items": scored(found)})

    @router.get("/items/{item:path}", tags=["items"], response_model=s.ItemOut, responses=errors(404, 422))
    async def item(item: Item) -> Response:
        """An item of the model."""
        number = service.engine.catalogue.index.get(item)
        if number is None:
            raise NotFound(f"item {item!r} is not among the model's items")
        return JSONResponse(item_of(service.engine, number))

    @router.get(
        "/health", tags=["operation"], response_model=s.HealthOut, responses={503: {"model": s.HealthOut}}
    )
    async def health() -> Response:
        """Whether the server is ready: it answers, and its store can be read. 503 if it is not."""
        ready = service.ready and await run_in_threadpool(can_read)
        engine = service.engine
        content = {
            "live": True,
            "ready": ready,
            "checkpoint": checkpoint_name(engine),
            "model": engine.key,
            "items": len(engine.catalogue),
            "uptime": round(time.monotonic() - service.started, 3),
        }
        return JSONResponse(content, 200 if ready else 503)

    def can_read() -> bool:
        try:
            next(service.store.users(), None)
        except RunError as error:
            logger.error("the store cannot be read: %s", error)
            return False
        return True

    @router.get("/health/live", tags=["operation"])
    async def live() -> Response:
        """Whether the process answers at all."""
        return JSONResponse({"live": True})

    @router.get("/metrics", tags=["operation"], responses=errors())
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.post("/reload", tags=["operation"], status_code=202, responses=errors())
    async def reload() -> Response:
        """Load the run's checkpoint now, on a server that has a token. Log and metrics say how it ends."""
        if service.token is None or service.reloader is None:
            raise HTTPException(403, "this server has no token; send SIGHUP to its process instead")
        service.reloader.reload()
        return JSONResponse({"reload": "started"}, 202)

    return router


def item_of(engine: Engine, item: int) -> dict[str, Any]:
    """An item as in `ItemOut`."""
    items = engine.catalogue.items
    return {"item": items.tokens[item], "title": items.titles[item], "retired": bool(items.retired[item])}


def scored(items: list[Scored]) -> list[dict[str, Any]]:
    """Recommendations as in `ScoredOut`."""
    return [{"item": item, "title": title, "score": round(score, 6)} for item, title, score in items]

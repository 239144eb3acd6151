"""The app: routes, documentation, errors as JSON, and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import recgrela
from recgrela.serve.access import Access
from recgrela.serve.batching import Busy
from recgrela.serve.limits import BodyLimit, error_response
from recgrela.serve.metrics import Timing
from recgrela.serve.queries import NotFound
from recgrela.serve.routes import make_router
from recgrela.serve.service import Service
from recgrela.system.errors import DataError, DiskFull, OutOfMemory, RunError

RETRY = {"retry-after": "1"}  # seconds
SHOWN_FAULTS = 3  # of a request with several
STATIC = Path(__file__).parent / "static"
PAGES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}


def create_app(service: Service) -> FastAPI:
    """The app of a service, which is started and stopped with it and is `app.state.service`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.stop()

    app = FastAPI(
        title="recgrela",
        version=recgrela.__version__,
        summary="Recommendations of next items from users' histories.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts of another site
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(make_router(service))
    for path, (name, kind) in PAGES.items():
        _add_page(app, path, (STATIC / name).read_bytes(), kind)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(Exception)(_bug)
    for kind_of_error, status, headers in (
        (NotFound, 404, None),
        (DataError, 422, None),
        (Busy, 503, RETRY),
    ):
        _add_error(app, kind_of_error, status, headers)
    # Their messages name files of the server, and are in its log.
    _add_error(app, RunError, 503, RETRY, "the store cannot be used now; try again later")
    _add_error(app, DiskFull, 507, None, "the disk of the store is full; nothing was stored")
    for lack in (OutOfMemory, MemoryError):
        _add_error(app, lack, 503, RETRY, "the server is out of memory; try again later")
    # The last one is the first that gets a request.
    app.add_middleware(BodyLimit)
    app.add_middleware(Access, token=service.token, hosts=service.hosts)
    app.add_middleware(Timing, metrics=service.metrics)
    return app


def _add_page(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    async def page() -> Response:
        return Response(content, media_type=kind)

    app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)


def _add_error(
    app: FastAPI,
    kind: type[Exception],
    status: int,
    headers: dict[str, str] | None,
    message: str | None = None,
) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        return error_response(status, message or str(error), headers)

    app.exception_handler(kind)(handle)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return error_response(error.status_code, str(error.detail), dict(error.headers or {}))


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """The places of faults and what is wrong with them; the values are not repeated."""
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    more = len(faults) - SHOWN_FAULTS
    text = "; ".join(faults[:SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")
    return error_response(422, text)


async def _bug(request: Request, error: Exception) -> Response:
    return error_response(500, "internal error; the server's log has the details")

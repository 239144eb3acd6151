"""Limits of a request's body: its size, the time it takes to arrive, and the JSON in it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20  # bytes
MAX_SECONDS = 30.0  # from the first to the last byte of a body
MAX_DEPTH = 8  # nested lists and objects


class BodyLimit:
    """ASGI middleware that reads a request's body before the app is called, up to limits.

    A larger body is answered by 413, however its length was announced, and a slower one by 408; the
    connection is then closed.
    """

    def __init__(self, app: ASGIApp, max_body: int = MAX_BODY, max_seconds: float = MAX_SECONDS) -> None:
        self.app, self.max_body, self.max_seconds = app, max_body, max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http" or not headers.keys() & {b"content-length", b"transfer-encoding"}:
            await self.app(scope, receive, send)
            return
        parts: list[bytes] = []
        size = int(headers.get(b"content-length", b"0"))  # the server has checked that it is a number
        deadline, more = time.monotonic() + self.max_seconds, True
        while more and size <= self.max_body:
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                await refuse(scope, send, 408, f"the body took longer than {self.max_seconds:g} s")
                return
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
            size = sum(map(len, parts))
        if size > self.max_body:
            await refuse(scope, send, 413, f"the body is above {self.max_body} bytes; send it in parts")
            return
        rest: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}

        async def replay() -> Message:
            nonlocal rest
            if rest is None:
                return await receive()
            message, rest = rest, None
            return message

        await self.app(scope, replay, send)


async def refuse(
    scope: Scope, send: Send, status: int, message: str, headers: dict[str, str] | None = None
) -> None:
    """Answers a request by an error, and closes the connection, whose body may be unread."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    response = error_response(status, message, {"connection": "close", **(headers or {})})
    await response(scope, receive, send)


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as JSON."""
    return JSONResponse({"error": message}, status, headers)


def parse_json(body: bytes) -> Any:
    """The value of a JSON text. Raises HTTPException 400 if it is not strict JSON or nested too deeply."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        is_deep = _is_deeper(value, MAX_DEPTH)
    except RecursionError:
        is_deep = True
    except ValueError as error:
        raise HTTPException(400, f"the body is not JSON in UTF-8: {error}") from None
    if is_deep:
        raise HTTPException(400, f"the body is nested deeper than {MAX_DEPTH} levels")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _is_deeper(value: Any, limit: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    parts = value if isinstance(value, list) else value.values()
    return limit == 0 or any(_is_deeper(part, limit - 1) for part in parts if isinstance(part, list | dict))


class JsonRoute(APIRoute):
    """A route whose body must be declared as JSON and is read by `parse_json`.

    Browsers send such a body to another site only if that site permits it, which this server does not.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_json(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise HTTPException(415, f"content-type is {kind!r}; send application/json")
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


class _JsonRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())

"""Who may send requests: bearer token, host and origin; and headers that keep browsers strict."""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recgrela.serve.limits import refuse
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path

TOKEN_VARIABLE = "RECGRELA_SERVE_TOKEN"
MIN_TOKEN = 16  # characters
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Paths that need no token: they have nothing of users or items.
PAGES = ("/", "/app.js", "/style.css", "/icon.svg", "/docs", "/docs.js", "/openapi.json")
OPEN = (*PAGES, "/health", "/health/live")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def read_token(path: str | None) -> str | None:
    """The token of a file or, without one, of the environment; None if there is neither.

    Raises:
        ConfigError: the file cannot be read, or the token is short or has other characters than ASCII ones.
    """
    if path is None:
        token, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    else:
        where = f"token_file {path}"
        try:
            token = expand_path(path, "token_file").read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ConfigError(f"{where}: {reason}") from None
    if token is None:
        return None
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where}: the token must have at least {MIN_TOKEN} printable ASCII characters and no spaces; "
            "make one with: openssl rand -hex 32"
        )
    return token


class Access:
    """ASGI middleware that refuses requests without the token, or that another site's page has sent.

    Args:
        app: the app.
        token: the token that requests must have; None: none.
        hosts: the names by which the server may be addressed, so that a page cannot reach it by a name of its
            own that resolves to a loopback address; None: any.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and _name(host) not in self.hosts:
            await refuse(scope, send_strictly, 403, f"the host must be one of {', '.join(self.hosts)}")
        elif origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            await refuse(scope, send_strictly, 403, "requests of other sites' pages are refused")
        elif scope["path"] not in OPEN and not self._has_token(headers.get("authorization", "")):
            challenge = {"www-authenticate": "Bearer"}
            message = "a valid token is needed: Authorization: Bearer TOKEN"
            await refuse(scope, send_strictly, 401, message, challenge)
        else:
            await self.app(scope, receive, send_strictly)

    def _has_token(self, authorization: str) -> bool:
        if self._token is None:
            return True
        kind, _, given = authorization.partition(" ")
        # Takes the same time wherever the token differs.
        return hmac.compare_digest(given.strip().encode(), self._token) and kind.lower() == "bearer"


def _name(host: str) -> str:
    """The name in a Host header, without the port and the brackets of an IPv6 address."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""

"""The process: a socket, signals, and an event loop that runs the app."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI

from recgrela.serve.access import LOOPBACK
from recgrela.system.errors import ConfigError

MAX_CONNECTIONS = 2048  # more are answered by 503
BACKLOG = 2048  # connections that the system queues
DRAIN_SECONDS = 30  # for requests that have begun when a stop signal arrives

logger = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError if the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"host: {host}: {error.strerror}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"port: cannot listen on {host}:{port}: {error.strerror}") from None
    return sock


def url_of(sock: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names_of(host: str) -> tuple[str, ...] | None:
    """Names by which a server on `host` may be addressed: those of loopback, or any elsewhere."""
    return tuple(dict.fromkeys((*LOOPBACK, host))) if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(app: FastAPI, sock: socket.socket, on_reload: Callable[[], None]) -> None:
    """Runs the app until SIGTERM or SIGINT, which let begun requests finish; a second one does not.

    Args:
        app: the app.
        sock: a listening socket; it is closed in the end.
        on_reload: called on SIGHUP.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=30,
        ws="none",
        lifespan="on",
    )
    asyncio.run(_serve(uvicorn.Server(config), sock, on_reload))


async def _serve(server: uvicorn.Server, sock: socket.socket, on_reload: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def stop(name: str) -> None:
        if server.should_exit:
            server.force_exit = True
        else:
            logger.info("%s: finishing the requests that have begun", name)
            server.should_exit = True

    running = asyncio.create_task(server.serve(sockets=[sock]))
    await asyncio.sleep(0)  # uvicorn has set its handlers, which would end the process by the signal
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop, signum.name)
    loop.add_signal_handler(signal.SIGHUP, on_reload)
    await running

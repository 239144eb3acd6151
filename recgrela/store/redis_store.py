"""The store for several machines: a Redis server.

Keys, each ending with an id as it is (Redis keys are any bytes, and what precedes an id is fixed):

| key | type | content |
|---|---|---|
| `recgrela:format` | string | version of this layout |
| `recgrela:users` | hash | revision by user |
| `recgrela:log:USER` | list | the user's events in order, packed by `recgrela.store.redis_records` |
| `recgrela:ids:USER` | set | ids of the user's events |
| `recgrela:models` | set | models that have states |
| `recgrela:states:MODEL` | hash | packed state by user |

Scripts (`recgrela.store.redis_scripts`) change a user without interruption. A call sends the scripts of up to
256 users at once, and then waits for their replies.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from recgrela.store import redis_scripts
from recgrela.store.base import Store
from recgrela.store.columns import Columns
from recgrela.store.events import Event, UserLog
from recgrela.store.redis_records import pack_event, pack_state, unpack_event, unpack_state
from recgrela.system.errors import ConfigError, RunError, one_line

FORMAT = b"1"
CALLS_PER_TRIP = 256  # bounds the memory of requests and replies; states of 20 KB are 5 MB
EVENTS_PER_CALL = 1000  # bounds the time for which a script blocks the server
PREFIX = b"recgrela:"
USERS, MODELS = PREFIX + b"users", PREFIX + b"models"

logger = logging.getLogger(__name__)


class RedisStore(Store):
    """A store in a Redis server (5 or newer), for any number of processes and machines.

    Acknowledged events survive a crash of the server if it runs with `appendonly yes` and `appendfsync
    always`, and are not evicted if `maxmemory-policy` is `noeviction`. A warning is logged if the server is
    set otherwise.

    Args:
        url: `redis://[user:password@]host:port/db`, `rediss://` for TLS, or `unix://path`.
        timeout: seconds to wait for the server.

    Raises:
        ConfigError: the package redis is not installed, or the URL is invalid.
        RunError: the server cannot be reached, or has data of a newer format.
    """

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        self._module = _import_redis()
        try:
            # A request is sent once: if the connection breaks, the server may have run it, and sending it
            # again would store events without ids twice.
            retry = importlib.import_module("redis.retry").Retry(
                importlib.import_module("redis.backoff").NoBackoff(), 0
            )
            self._client: Any = self._module.Redis.from_url(
                url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry
            )
        except ValueError as error:
            raise ConfigError(f"store: {one_line(error)}; give redis://host:port/db") from error
        self._address = _address(self._client)
        if self._client.get_encoder().decode_responses:
            raise ConfigError(f"store: {self._address}: decode_responses must not be set; states are bytes")
        self._hashes: dict[str, str] = {}  # of the scripts that the server has
        self._closed = False
        with self._errors():
            self._check_format()
            self._warn_of_settings()

    def _append(self, columns: Columns) -> list[bool]:
        indices: dict[str, list[int]] = {}
        for i, user in enumerate(columns.users):
            indices.setdefault(user, []).append(i)
        calls, rows = [], []
        for user, mine in indices.items():
            name = user.encode()
            for start in range(0, len(mine), EVENTS_PER_CALL):
                part = mine[start : start + EVENTS_PER_CALL]
                arguments: list[Any] = [name]
                for i in part:
                    id = columns.ids[i]
                    key = None if id is None else id.encode()
                    arguments.append(pack_event(name, columns.items[i].encode(), columns.times[i], key))
                    arguments.append(b"" if key is None else b"+" + key)
                calls.append(([USERS, PREFIX + b"log:" + name, PREFIX + b"ids:" + name], arguments))
                rows.append(part)
        accepted = [False] * len(columns.users)
        for part, replies in zip(rows, self._run(redis_scripts.APPEND, calls), strict=True):
            for i, reply in zip(part, replies, strict=True):
                accepted[i] = reply == 1
        return accepted

    def load(self, model: str, users: Sequence[str]) -> list[UserLog]:
        names = dict.fromkeys(users)
        logs = self._load(model, list(names))
        return [logs[user] for user in users]

    def save(self, model: str, entries: Iterable[tuple[str, int, int, bytes]]) -> None:
        key = model.encode()
        calls = []
        for user, revision, folded, state in entries:
            name = user.encode()
            if revision >= 0 and folded > 0:
                record = pack_state(name, key, revision, folded, state)
                calls.append((self._keys(name, key), [name, revision, folded, record]))
        if calls:
            with self._errors():
                self._client.sadd(MODELS, key)
            self._run(redis_scripts.SAVE, calls)

    def history(self, user: str) -> list[Event]:
        name = user.encode()
        with self._errors():
            records = self._client.lrange(PREFIX + b"log:" + name, 0, -1)
        return [self._event(name, record) for record in records]

    def users(self) -> Iterator[str]:
        seen, cursor = set(), 0
        while True:
            with self._errors():
                cursor, page = self._client.hscan(USERS, cursor, count=1000)
            for name in page:  # a scan may return a field twice
                if name not in seen:
                    seen.add(name)
                    yield name.decode()
            if cursor == 0:
                return

    def drop_states(self, model: str | None) -> None:
        with self._errors():
            models = self._client.smembers(MODELS) if model is None else [model.encode()]
            for name in models:
                self._client.unlink(PREFIX + b"states:" + name)

    def close(self) -> None:
        self._closed = True
        self._client.close()

    def _load(self, model: str, users: list[str]) -> dict[str, UserLog]:
        key = model.encode()
        calls = [(self._keys(name, key), [name]) for name in (user.encode() for user in users)]
        logs, damaged, again = {}, [], []
        for (keys, (name,)), reply in zip(calls, self._run(redis_scripts.LOAD, calls), strict=True):
            revision, folded, record, records = reply
            user = name.decode()
            try:
                state = unpack_state(name, key, record) if folded else None
            except ValueError:
                logger.warning(
                    "%s: the state of user %r is damaged and is computed again from the log",
                    self._address,
                    user,
                )
                damaged.append((keys, [name, record]))
                again.append(user)
                continue
            pending = [self._event(name, record).item for record in records]
            logs[user] = UserLog(user, revision, folded, state, pending)
        if damaged:
            self._run(redis_scripts.FORGET, damaged)
            logs |= self._load(model, again)
        return logs

    def _keys(self, user: bytes, model: bytes) -> list[bytes]:
        return [USERS, PREFIX + b"log:" + user, PREFIX + b"states:" + model]

    def _event(self, user: bytes, record: bytes) -> Event:
        try:
            return unpack_event(user, record)
        except ValueError as error:
            raise RunError(
                f"{self._address}: an event of user {user.decode()!r} is damaged ({error}); "
                "restore a copy of the server's data (the events are enough, states are computed again)"
            ) from error

    def _run(self, script: str, calls: list[tuple[list[bytes], list[Any]]]) -> list[Any]:
        """Replies of a script to calls of keys and arguments."""
        replies: list[Any] = []
        with self._errors():
            for start in range(0, len(calls), CALLS_PER_TRIP):
                replies += self._trip(script, calls[start : start + CALLS_PER_TRIP])
        return replies

    def _trip(self, script: str, calls: list[tuple[list[bytes], list[Any]]]) -> list[Any]:
        """Send calls at once. A call that the server refuses because it has no such script is sent again."""
        waiting = list(range(len(calls)))
        replies: list[Any] = [None] * len(calls)
        missing = self._module.exceptions.NoScriptError
        while waiting:
            if script not in self._hashes:
                self._hashes[script] = self._client.script_load(script)
            pipeline = self._client.pipeline(transaction=False)
            for i in waiting:
                keys, arguments = calls[i]
                pipeline.evalsha(self._hashes[script], len(keys), *keys, *arguments)
            for i, reply in zip(waiting, pipeline.execute(raise_on_error=False), strict=True):
                replies[i] = reply
            waiting = [i for i in waiting if isinstance(replies[i], missing)]
            if waiting:
                self._hashes.pop(script, None)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _check_format(self) -> None:
        self._client.set(PREFIX + b"format", FORMAT, nx=True)
        found = self._client.get(PREFIX + b"format")
        if found != FORMAT:
            text = found.decode(errors="replace") if found else "unknown"
            raise RunError(
                f"{self._address} has data of format {text}, and this version of recgrela reads format "
                f"{FORMAT.decode()}; upgrade recgrela, or use another database of the server"
            )

    def _warn_of_settings(self) -> None:
        try:
            pairs = [self._client.config_get(name) for name in ("append*", "maxmemory*")]
        except self._module.exceptions.ResponseError as error:
            logger.warning(
                "%s does not show its settings (%s); make sure that it runs with appendonly yes, appendfsync "
                "always and maxmemory-policy noeviction, or acknowledged events can be lost",
                *(self._address, one_line(error)),
            )
            return
        settings = {_text(name): _text(value) for pair in pairs for name, value in pair.items()}
        for name, safe, loss in (
            ("appendonly", "yes", "a restart of the server"),
            ("appendfsync", "always", "a power failure"),
            ("maxmemory-policy", "noeviction", "a lack of memory"),
        ):
            if settings.get(name) != safe:
                logger.warning(
                    "%s runs with %s %s: acknowledged events can be lost by %s; set it to %s",
                    *(self._address, name, settings.get(name), loss, safe),
                )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns errors of the client and the server into RunError."""
        if self._closed:
            raise RunError(f"{self._address} is closed")
        exceptions = self._module.exceptions
        try:
            yield
        except exceptions.AuthenticationError as error:
            raise RunError(f"{self._address} refuses the user or password: {one_line(error)}") from error
        except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
            raise RunError(
                f"cannot reach {self._address}: {one_line(error)}; start the server or correct the address "
                "(what was sent may have been stored; events with ids can be sent again)"
            ) from error
        except exceptions.RedisError as error:
            raise RunError(
                f"{self._address}: {one_line(error)} (part of what was sent may have been stored; "
                "events with ids can be sent again)"
            ) from error


def _import_redis() -> Any:
    try:
        return importlib.import_module("redis")
    except ModuleNotFoundError as error:
        raise ConfigError("a store in Redis needs the package redis; pip install redis") from error


def _address(client: Any) -> str:
    """The server of a client, without its password."""
    settings = client.connection_pool.connection_kwargs
    place = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
    return f"Redis at {place}, database {settings.get('db', 0)}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

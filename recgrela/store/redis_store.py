"""The store for several machines: a Redis server.

Keys, each ending with an id as it is (Redis keys are any bytes, and what precedes an id is fixed):

| key | type | content |
|---|---|---|
| `recgrela:format` | string | version of this layout |
| `recgrela:users` | hash | revision by user |
| `recgrela:log:USER` | list | the user's events in order, packed by `recgrela.store.redis_records` |
| `recgrela:ids:USER` | set | ids of the user's events |
| `recgrela:items:USER` | set | items of the user's events |
| `recgrela:models` | set | models that have states |
| `recgrela:states:MODEL` | hash | packed state by user |

One call of a script (`recgrela.store.redis_scripts`) stores up to 1,000 events, or loads or saves up to 256
users, without interruption by other clients. Users are in one database, not in a cluster.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any

from recgrela.store import redis_scripts
from recgrela.store.arguments import Entry
from recgrela.store.base import Store
from recgrela.store.columns import Columns
from recgrela.store.events import Event, UserLog
from recgrela.store.redis_records import pack_event, pack_state, unpack_event, unpack_state
from recgrela.system.errors import ConfigError, RunError, one_line

FORMAT = b"1"
# A script blocks the server, and a request and its reply are in memory.
EVENTS_PER_CALL = 1000
USERS_PER_CALL = 256  # with states of 20 KB, 5 MB
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
            pool = self._client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # checks the parameters of the URL
        except (TypeError, ValueError) as error:
            raise ConfigError(f"store: {one_line(error)}; give redis://host:port/db") from error
        self._address = _address(self._client)
        if self._client.get_encoder().decode_responses:
            raise ConfigError(f"store: {self._address}: decode_responses must not be set; states are bytes")
        self._closed = False
        with self._errors():
            self._check_format()
            self._warn_of_settings()

    def _append(self, columns: Columns) -> list[bool]:
        accepted = [False] * len(columns.users)
        for start in range(0, len(accepted), EVENTS_PER_CALL):
            events_of: dict[str, list[int]] = {}
            for i in range(start, min(start + EVENTS_PER_CALL, len(accepted))):
                events_of.setdefault(columns.users[i], []).append(i)
            keys, arguments = [USERS], []
            for user, events in events_of.items():
                name = user.encode()
                keys += [PREFIX + kind + name for kind in (b"log:", b"ids:", b"items:")]
                arguments += [name, len(events)]
                for i in events:
                    id = columns.ids[i]
                    key = None if id is None else id.encode()
                    item = columns.items[i].encode()
                    record = pack_event(name, item, columns.times[i], key)
                    arguments += [record, b"" if key is None else b"+" + key, item]
            replies = self._run(redis_scripts.APPEND, keys, arguments)
            for i, reply in zip(chain.from_iterable(events_of.values()), replies, strict=True):
                accepted[i] = reply == 1
        return accepted

    def _load(self, model: str, users: list[str]) -> list[UserLog]:
        names = dict.fromkeys(users)
        logs = self._logs(model, list(names))
        return [logs[user] for user in users]

    def _save(self, model: str, entries: list[Entry]) -> None:
        key = model.encode()
        if entries:
            with self._errors():
                self._client.sadd(MODELS, key)
        for start in range(0, len(entries), USERS_PER_CALL):
            part = entries[start : start + USERS_PER_CALL]
            arguments: list[Any] = []
            for user, revision, folded, state in part:
                name = user.encode()
                arguments += [name, revision, folded, pack_state(name, key, revision, folded, state)]
            self._run(redis_scripts.SAVE, self._keys(arguments[::4], key), arguments)

    def _seen(self, asked: list[tuple[str, list[str]]]) -> list[set[str]]:
        keys = [PREFIX + b"items:" + user.encode() for user, _ in asked]
        arguments = list(
            chain.from_iterable((len(items), *(i.encode() for i in items)) for _, items in asked)
        )
        found = iter(self._run(redis_scripts.SEEN, keys, arguments) if asked else [])
        return [{item for item in items if next(found)} for _, items in asked]

    def _history(self, user: str, last: int | None) -> list[Event]:
        if last == 0:
            return []
        name = user.encode()
        with self._errors():
            records = self._client.lrange(PREFIX + b"log:" + name, 0 if last is None else -last, -1)
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

    def _drop_states(self, model: str | None) -> None:
        with self._errors():
            models = self._client.smembers(MODELS) if model is None else [model.encode()]
            for name in models:
                self._client.unlink(PREFIX + b"states:" + name)

    def close(self) -> None:
        self._closed = True
        self._client.close()

    def _logs(self, model: str, users: list[str]) -> dict[str, UserLog]:
        key, logs = model.encode(), {}
        damaged: list[str] = []
        for start in range(0, len(users), USERS_PER_CALL):
            part = users[start : start + USERS_PER_CALL]
            names = [user.encode() for user in part]
            replies = self._run(redis_scripts.LOAD, self._keys(names, key), names)
            for user, name, (revision, folded, record, records) in zip(part, names, replies, strict=True):
                try:
                    state = unpack_state(name, key, record) if folded else None
                except ValueError:
                    logger.warning(
                        "%s: the state of user %r is damaged and is computed again from the log",
                        *(self._address, user),
                    )
                    self._run(redis_scripts.FORGET, [PREFIX + b"states:" + key], [name, record])
                    damaged.append(user)
                    continue
                pending = [self._event(name, record).item for record in records]
                logs[user] = UserLog(user, revision, folded, state, pending)
        return logs | self._logs(model, damaged) if damaged else logs

    def _keys(self, users: list[bytes], model: bytes) -> list[bytes]:
        return [USERS, PREFIX + b"states:" + model, *(PREFIX + b"log:" + user for user in users)]

    def _event(self, user: bytes, record: bytes) -> Event:
        try:
            return unpack_event(user, record)
        except ValueError as error:
            raise RunError(
                f"{self._address}: an event of user {user.decode()!r} is damaged ({error}); "
                "restore a copy of the server's data (the events are enough, states are computed again)"
            ) from error

    def _run(self, script: str, keys: list[bytes], arguments: Sequence[Any]) -> list[Any]:
        """The reply of a script. It is loaded if the server does not have it, as after a restart."""
        with self._errors():
            try:
                return self._client.evalsha(_sha1(script), len(keys), *keys, *arguments)
            except self._module.exceptions.NoScriptError:
                return self._client.eval(script, len(keys), *keys, *arguments)

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


@cache
def _sha1(script: str) -> str:
    """The name of a script on a server."""
    return hashlib.sha1(script.encode()).hexdigest()


def _address(client: Any) -> str:
    """The server of a client, without its password."""
    settings = client.connection_pool.connection_kwargs
    place = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
    return f"Redis at {place}, database {settings.get('db', 0)}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

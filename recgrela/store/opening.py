"""Opens a store by its URL."""

from __future__ import annotations

import re
from pathlib import Path

from recgrela.store.base import Store
from recgrela.store.redis_store import RedisStore
from recgrela.store.sqlite_store import SQLiteStore
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path

REDIS = ("redis", "rediss", "unix")
FORMS = "give a path, sqlite:///path or redis://host:port/db"


def open_store(url: str | Path) -> Store:
    """Open a store, and create an SQLite file that does not exist.

    Args:
        url: a path, or `sqlite:///` and a path (four slashes begin an absolute one); `redis://host:port/db`,
            `rediss://` for TLS, or `unix://` and the path of a socket.

    Raises:
        ConfigError: the URL is invalid.
        RunError: the file or the server cannot be used; the message says why.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return SQLiteStore(expand_path(text, "store"))
    if scheme == "sqlite":
        if not rest.startswith("/"):
            raise ConfigError(f"store: {text} has no path after sqlite:///; {FORMS}")
        return SQLiteStore(expand_path(rest[1:], "store"))
    if scheme in REDIS:
        return RedisStore(text)
    raise ConfigError(f"store: {scheme}:// is unknown; {FORMS}")

"""The event log of users and the model states computed from it, in an SQLite file or in Redis."""

from recgrela.store.base import Store
from recgrela.store.events import Event, UserLog
from recgrela.store.opening import open_store
from recgrela.store.redis_store import RedisStore
from recgrela.store.sqlite_store import SQLiteStore

__all__ = ["Event", "RedisStore", "SQLiteStore", "Store", "UserLog", "open_store"]

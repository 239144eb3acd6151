"""The event log of users and the model states computed from it, in an SQLite file."""

from recgrela.store.base import Store
from recgrela.store.events import Event, UserLog
from recgrela.store.opening import open_store
from recgrela.store.sqlite_store import SQLiteStore

__all__ = ["Event", "SQLiteStore", "Store", "UserLog", "open_store"]

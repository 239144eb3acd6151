"""What every store does: a log of events for each user, and states that models computed from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from recgrela.store.arguments import Entry, asked_items, number_of_events, texts, valid_entries, valid_text
from recgrela.store.columns import Columns, columns_of_events, columns_of_table
from recgrela.store.events import Event, UserLog
from recgrela.system.errors import DataError, RunError

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Self

ROWS_PER_APPEND = 250_000  # rows of a table in one transaction: bounds memory and SQLite's log


class Store(ABC):
    """Event logs of users and states of models; a context manager.

    The log is the truth and is durable. A state is a cache: it can be dropped, and be computed again from
    the log. A user is created by the user's first event. All methods may be called from several threads,
    and several processes may open the same store.

    Raises:
        RunError: by every method, if the store cannot be read or written; the message names the file or the
            server and says what to do.
        DataError: by every method, if an argument is invalid, as a user that is not text; nothing is changed.
    """

    def append(self, events: Sequence[Event]) -> list[bool]:
        """Store events; they are durable when the method returns.

        Events of a user are ordered by time, and events of equal time by arrival. An event older than the
        user's last one is inserted by its time and raises the user's revision by 1, because states of
        earlier revisions do not contain it.

        Returns:
            For each event True, or False if the user already has an event of its id; it is not stored again.

        Raises:
            DataError: an event is invalid; none is stored.
            RunError: the events could not be stored. With SQLite none of them is; with Redis some may be,
                and events with ids can be sent again.
        """
        return self._append(columns_of_events(events))

    def append_table(self, table: pa.Table | pa.RecordBatch) -> int:
        """Store the rows of an Arrow table as by `append`, in transactions of 250,000 rows.

        Args:
            table: columns user and item (text or integers), time (seconds since 1970 as a number, or a
                timestamp) and, optionally, id (text, null for none).

        Returns:
            Number of events stored; the other rows are duplicates.

        Raises:
            DataError: a column is missing, unknown or of a wrong type, or a value is invalid; no row is
                stored.
            RunError: the rows could not be stored; the message says how many were.
        """
        stored = done = 0
        for columns in columns_of_table(table, ROWS_PER_APPEND):
            try:
                stored += sum(self._append(columns))
            except RunError as error:
                raise RunError(f"{error}; the first {done:,} rows of the table are stored") from error
            done += len(columns.users)
        return stored

    def import_events(self, batches: Iterable[pa.Table | pa.RecordBatch]) -> int:
        """`append_table` for each of the batches. Returns the number of events stored.

        Errors name the number of the batch, from 0; the batches before it are stored.
        """
        stored = 0
        for number, batch in enumerate(batches):
            try:
                stored += self.append_table(batch)
            except (DataError, RunError) as error:
                raise type(error)(f"batch {number}: {error}") from error
        return stored

    @abstractmethod
    def _append(self, columns: Columns) -> list[bool]:
        """`append` for checked events."""

    def load(self, model: str, users: Sequence[str]) -> list[UserLog]:
        """The log of each user, as of one point in time.

        Args:
            model: fingerprint of the model's weights. States of other models are not returned.
            users: ids of users. A user without events has an empty log of revision 0.
        """
        return self._load(valid_text("model", model), texts("users", users))

    @abstractmethod
    def _load(self, model: str, users: list[str]) -> list[UserLog]:
        """`load` for checked arguments."""

    def save(self, model: str, entries: Iterable[tuple[str, int, int, bytes]]) -> None:
        """Store states. A state may be lost on power failure; it is then computed again.

        Args:
            model: fingerprint of the model's weights.
            entries: user, revision, folded and state. An entry is kept if `revision` is the user's current
                one, the log has at least `folded` events, and no state of this revision and model with as
                many is stored; the others are ignored.
        """
        self._save(valid_text("model", model), valid_entries(entries))

    @abstractmethod
    def _save(self, model: str, entries: list[Entry]) -> None:
        """`save` for checked entries whose numbers a log can have."""

    def seen(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[set[str]]:
        """The items that users have in their logs, at a cost that does not depend on the lengths of the logs.

        Args:
            asked: users, and for each the items to look for.

        Returns:
            For each pair, those of its items that the user has.
        """
        return self._seen(asked_items(asked))

    @abstractmethod
    def _seen(self, asked: list[tuple[str, list[str]]]) -> list[set[str]]:
        """`seen` for checked arguments."""

    def history(self, user: str, last: int | None = None) -> list[Event]:
        """The last events of a user, all for None, ordered by time, then by arrival."""
        return self._history(valid_text("user", user), number_of_events(last))

    @abstractmethod
    def _history(self, user: str, last: int | None) -> list[Event]:
        """`history` for checked arguments."""

    @abstractmethod
    def users(self) -> Iterator[str]:
        """Ids of all users, each once, in no specified order. Users added meanwhile may be missing."""

    def drop_states(self, model: str | None) -> None:
        """Delete the states of a model, or of all models if it is None."""
        self._drop_states(None if model is None else valid_text("model", model))

    @abstractmethod
    def _drop_states(self, model: str | None) -> None:
        """`drop_states` for a checked argument."""

    @abstractmethod
    def close(self) -> None:
        """Release connections. Using the store afterwards raises RunError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

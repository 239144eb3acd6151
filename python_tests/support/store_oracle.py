"""A store in memory, written for clarity: what the real stores must equal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recgrela.store import Event, UserLog


class Oracle:
    def __init__(self) -> None:
        self.logs: dict[str, list[Event]] = {}
        self.revisions: dict[str, int] = {}
        self.states: dict[tuple[str, str], tuple[int, int, bytes]] = {}

    def append(self, events: Sequence[Event]) -> list[bool]:
        return [self.append_one(event) for event in events]

    def append_one(self, event: Event) -> bool:
        log = self.logs.get(event.user, [])
        if event.id is not None and event.id in [other.id for other in log]:
            return False
        if log and event.time < log[-1].time:
            self.revisions[event.user] = self.revisions.get(event.user, 0) + 1
        self.logs[event.user] = sorted([*log, event], key=lambda e: e.time)  # stable: equal times by arrival
        return True

    def load(self, model: str, users: Sequence[str]) -> list[UserLog]:
        return [self.load_one(model, user) for user in users]

    def load_one(self, model: str, user: str) -> UserLog:
        revision, (of, folded, state) = (
            self.revisions.get(user, 0),
            self.states.get((model, user), (0, 0, b"")),
        )
        items = [event.item for event in self.logs.get(user, [])]
        if folded and of == revision:
            return UserLog(user, revision, folded, state, items[folded:])
        return UserLog(user, revision, 0, None, items)

    def save(self, model: str, entries: Iterable[tuple[str, int, int, bytes]]) -> None:
        for user, revision, folded, state in entries:
            stored = self.states.get((model, user), (-1, 0, b""))
            above = stored[1] if stored[0] == revision else 0
            if revision == self.revisions.get(user, 0) and above < folded <= len(self.logs.get(user, [])):
                self.states[model, user] = (revision, folded, state)

    def seen(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[set[str]]:
        return [{event.item for event in self.logs.get(user, [])} & set(items) for user, items in asked]

    def history(self, user: str, last: int | None = None) -> list[Event]:
        log = self.logs.get(user, [])
        return log if last is None else log[max(len(log) - last, 0) :]

    def drop_states(self, model: str | None) -> None:
        self.states = {key: state for key, state in self.states.items() if model not in (None, key[0])}

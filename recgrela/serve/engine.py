"""Events in, recommendations out: the service without HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from recgrela.inference.recommender import Recommender
from recgrela.nn.state import ModelState, PackedDtype
from recgrela.serve.folding import Folder, advance
from recgrela.serve.inspection import LayerStates, inspect
from recgrela.serve.queries import Found, NotFound, Query, Receipt, Scored
from recgrela.store import Event, Store
from recgrela.system.errors import DataError, UserError
from recgrela.system.out_of_memory import MemoryPhase

# Candidates beyond k, so that a user who has seen some of the best items needs no second search.
MARGIN = 16

ANSWERING = MemoryPhase("answering requests", "lower --max_batch, or give more memory")

logger = logging.getLogger(__name__)


class Engine:
    """Keeps users' states up to date with their logs, and recommends from them.

    A model that carries states uses the whole history of a user, others its last `max_len` items. One thread
    at a time may call the methods.

    Args:
        recommender: the model and its items.
        store: the logs of events, and the states of users.
        dtype: format of stored states, "float32" or, at half the size, "bfloat16".
    """

    def __init__(self, recommender: Recommender, store: Store, dtype: PackedDtype = "float32") -> None:
        self.recommender, self.store = recommender, store
        self.model, self.catalogue = recommender.model, recommender.catalogue
        self.folder = Folder(recommender, store, dtype)
        allowed = self.catalogue.allowed(None, None)
        self._allowed = None if allowed is None else allowed.to(recommender.device)

    @property
    def key(self) -> str:
        """The name of this model's states in the store."""
        return self.folder.key

    # ---- events

    def add(self, events: Sequence[Event]) -> list[Receipt]:
        """Stores events, and advances the states of their users.

        The events are durable when the method returns. The log is what counts: if a state cannot be advanced,
        the error is logged, and the next request for the user computes it.

        Raises:
            DataError: an event is invalid; none is stored.
            RunError: the events could not be stored; see `Store.append`.
        """
        stored = self.store.append(events)
        try:
            with ANSWERING:
                self.folder.update(list(dict.fromkeys(event.user for event in events)))
        except UserError as error:
            logger.warning("events are stored, but their states are not advanced yet: %s", error)
        known = self.catalogue.ids([event.item for event in events]) > 0
        return [Receipt(*pair) for pair in zip(stored, known.tolist(), strict=True)]

    def rebuild(self, progress: Callable[[int], None] | None = None) -> int:
        """Brings the states of all users up to date; see `Folder.rebuild`."""
        return self.folder.rebuild(self.store.users(), progress)

    # ---- recommendations

    def recommend(self, queries: Sequence[Query]) -> list[Found | UserError]:
        """Answers queries together.

        Returns:
            For each query the recommendations, or its error: NotFound for a user without an event that the
            model knows; DataError for a history without a known item, or if no item may be recommended.

        Raises:
            RunError: the store cannot be read.
        """
        if not queries:
            return []
        hidden, lengths, seen = self._encode(queries)
        answers: list[Found | UserError] = [self._absent(query) for query in queries]
        groups: dict[tuple[str, ...] | None, list[int]] = {}
        for row in np.flatnonzero(lengths).tolist():
            groups.setdefault(queries[row].allow, []).append(row)
        for allow, rows in groups.items():
            try:
                allowed = self._allowed if allow is None else self._only(allow)
            except DataError as error:
                for row in rows:
                    answers[row] = error
                continue
            for row, found in self._search(hidden, queries, rows, seen, allowed).items():
                answers[row] = Found(found, int(lengths[row]))
        return answers

    def similar(self, item: str, k: int) -> list[Scored]:
        """The k items most similar to an item, with their cosines; see `Recommender.similar_items`.

        Raises:
            NotFound: the model does not know the item.
        """
        if item not in self.catalogue.index:
            raise NotFound(f"item {item!r} is not among the model's {len(self.catalogue)} items")
        table = self.recommender.similar_items([item], k)
        return [
            Scored(*row)
            for row in zip(*(table[name].to_pylist() for name in ("similar", "title", "score")), strict=True)
        ]

    def states(self, query: Query) -> list[LayerStates]:
        """Norms of states and gates, by layer and head, after the history of a query.

        Gates are those of the last item after at most `max_len` - 1 items before it.

        Raises:
            NotFound, DataError: as `recommend` returns them.
            RunError: the store cannot be read.
        """
        if query.user is None:
            history = self._known(query.history)
            state = self._after([history])
        else:
            state = self.folder.states([query.user])
            events = self.store.history(query.user, last=self.model.max_len)
            history = self._known([event.item for event in events])
        if len(history) == 0 or int(state["position"][0]) == 0:
            raise self._absent(query)
        items = torch.from_numpy(history[-self.model.max_len :]).to(self.recommender.device)
        return inspect(self.model, state, 0, items)

    # ---- parts

    def _known(self, tokens: Sequence[str]) -> np.ndarray:
        ids = self.catalogue.ids(tokens)
        return ids[ids > 0]

    def _after(self, histories: Sequence[np.ndarray]) -> ModelState:
        """The states after histories of item ids."""
        state = self.model.init_state(len(histories))
        advance(self.recommender.step, state, histories)
        return state

    def _encode(self, queries: Sequence[Query]) -> tuple[Tensor, np.ndarray, dict[int, np.ndarray]]:
        """Hidden states [B, D], numbers of known items [B], and the items of given histories by query."""
        users = list(dict.fromkeys(query.user for query in queries if query.user is not None))
        given = {row: self._known(query.history) for row, query in enumerate(queries) if query.user is None}
        parts = []
        if users:
            parts.append(self.folder.hidden(users))
        if given:
            state = self._after(list(given.values()))
            parts.append((state["hidden"].float(), state["position"]))
        place = {user: row for row, user in enumerate(users)}
        of_history = dict(zip(given, range(len(users), len(users) + len(given)), strict=True))
        rows = torch.tensor(
            [
                of_history[row] if query.user is None else place[query.user]
                for row, query in enumerate(queries)
            ],
            device=self.recommender.device,
        )
        hidden, lengths = (torch.cat(tensors)[rows] for tensors in zip(*parts, strict=True))
        return hidden, lengths.cpu().numpy(), given

    def _absent(self, query: Query) -> DataError:
        """The error of a query without a known item."""
        if query.user is None:
            return DataError("the history has no item that the model knows")
        return NotFound(f"user {query.user!r} has no events of items that the model knows")

    def _only(self, allow: Sequence[str]) -> Tensor:
        allowed = self.catalogue.allowed(allow, None)
        assert allowed is not None
        return allowed.to(self.recommender.device)

    def _search(
        self,
        hidden: Tensor,
        queries: Sequence[Query],
        rows: list[int],
        given: dict[int, np.ndarray],
        allowed: Tensor | None,
    ) -> dict[int, list[Scored]]:
        """Items and scores for some queries that share the items that may be recommended.

        Items of given histories and denied items are excluded by the search. A stored user's items are not
        known here: more than k items are searched, the store says which of them the user has, and the search
        is repeated with twice as many for those who have too many of them.
        """
        found: dict[int, list[Scored]] = {}
        tokens, titles = self.catalogue.items.tokens, self.catalogue.items.titles
        fetch = max(queries[row].k for row in rows) + MARGIN
        while rows:
            excluded = self._excluded([queries[row] for row in rows], [given.get(row) for row in rows])
            items, scores = self.recommender.index.search(
                hidden[rows], fetch, excluded=excluded, allowed=allowed
            )
            answers = [
                ([item for item in some if item > 0], values)
                for some, values in zip(items.tolist(), scores.tolist(), strict=True)
            ]
            seen = self._seen([queries[row] for row in rows], [some for some, _ in answers])
            again = []
            for row, (some, values), had in zip(rows, answers, seen, strict=True):
                kept = [place for place, item in enumerate(some) if item not in had][: queries[row].k]
                if len(kept) < queries[row].k and len(some) == fetch:
                    again.append(row)
                else:
                    found[row] = [
                        Scored(tokens[some[place]], titles[some[place]], values[place]) for place in kept
                    ]
            rows, fetch = again, 2 * fetch
        return found

    def _excluded(
        self, queries: Sequence[Query], given: Sequence[np.ndarray | None]
    ) -> tuple[Tensor, Tensor] | None:
        """The items that the search must not return, packed; None if there are none."""
        parts = []
        for query, history in zip(queries, given, strict=True):
            items = self._known(query.deny)
            if query.exclude_seen and history is not None:
                items = np.concatenate([items, history])
            parts.append(items)
        offsets = np.cumsum([0, *map(len, parts)])
        if offsets[-1] == 0:
            return None
        device = self.recommender.device
        return torch.from_numpy(np.concatenate(parts)).to(device), torch.from_numpy(offsets).to(device)

    def _seen(self, queries: Sequence[Query], found: Sequence[list[int]]) -> list[set[int]]:
        """The found items that stored users have in their logs and must not get."""
        tokens = self.catalogue.items.tokens
        wanted = [row for row, q in enumerate(queries) if q.user is not None and q.exclude_seen]
        asked = [(queries[row].user or "", [tokens[item] for item in found[row]]) for row in wanted]
        seen: list[set[int]] = [set() for _ in queries]
        if asked:
            for row, had in zip(wanted, self.store.seen(asked), strict=True):
                seen[row] = {self.catalogue.index[token] for token in had}
        return seen

"""States of users, advanced by the events that their logs have gained."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from recgrela.inference.captured import CapturedStep
from recgrela.inference.encoding import MAX_SLOTS, fitting
from recgrela.inference.recommender import Recommender
from recgrela.models.streaming import PREFILL_ROWS
from recgrela.nn.state import ModelState, PackedDtype
from recgrela.store import Store, UserLog
from recgrela.system.errors import RunError

USERS_PER_PASS = 256  # users whose logs `rebuild` holds in memory at a time

logger = logging.getLogger(__name__)


@dataclass
class FoldCounts:
    """What a `Folder` has done: items by how they reached a state, and states that could not be stored."""

    steps: int = 0
    prefilled: int = 0
    unsaved: int = 0


class Folder:
    """Loads stored states, advances them to the end of the users' logs, and stores them again.

    A stored state is a cache. If there is none, or events were inserted before its end, the state is computed
    from the whole log.

    Args:
        recommender: the model and its items. The model is put into eval mode.
        store: the users' logs.
        dtype: format of the stored states; see `ModelState.pack`.

    Attributes:
        key: names the states of this model in the store: a hash of weights, of the items' ids and of `dtype`.
    """

    def __init__(self, recommender: Recommender, store: Store, dtype: PackedDtype) -> None:
        self.model, self.catalogue = recommender.model.eval(), recommender.catalogue
        self.step = recommender.step
        self.store, self.dtype = store, dtype
        self.counts = FoldCounts()
        digest = hashlib.sha256(f"{recommender.fingerprint} {dtype}".encode())
        digest.update("\0".join(self.catalogue.items.tokens).encode())
        self.key = digest.hexdigest()[:32]
        self._empty = self.model.init_state(0)
        # The first bytes of a packed state, which are all that recommending takes.
        self._head = ModelState({name: self._empty[name] for name in ("position", "hidden")})
        self._head_bytes = self._head.num_bytes(dtype)
        assert list(self._empty)[:2] == list(self._head)

    def update(self, users: Sequence[str]) -> None:
        """Advances the stored states of distinct users to the end of their logs.

        A state that cannot be stored is logged and counted, because it can be computed again.

        Raises:
            RunError: the store cannot be read.
        """
        self._fold([log for log in self.store.load(self.key, users) if log.pending])

    def hidden(self, users: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The hidden states [B, D] and numbers of known items [B] of distinct users, after all their events.

        A user without events that the model knows has 0 items. States are advanced as by `update`.
        """
        logs = self.store.load(self.key, users)
        is_stale = [log.state is None or bool(log.pending) for log in logs]
        parts, rows = [], []
        for stale in (False, True):
            some = [row for row, is_one in enumerate(is_stale) if is_one == stale]
            if some:
                of_some = [logs[row] for row in some]
                parts.append(self._fold(of_some) if stale else self._unpack(of_some, self._head))
                rows += some
        heads = [ModelState({name: part[name] for name in self._head}) for part in parts]
        head = ModelState.cat(heads).select(torch.tensor(rows).argsort())
        return head["hidden"].float(), head["position"]

    def states(self, users: Sequence[str]) -> ModelState:
        """The whole states of distinct users after all their events; see `hidden`."""
        return self._fold(self.store.load(self.key, users))

    def rebuild(self, users: Iterable[str], progress: Callable[[int], None] | None = None) -> int:
        """Brings the stored states of many users up to date, with the logs of some at a time in memory.

        Args:
            users: distinct users.
            progress: called with the number of users done so far; the rebuild ends if it raises.

        Returns:
            The number of users.
        """
        done = 0
        for some in batched(users, USERS_PER_PASS):
            self.update(some)
            done += len(some)
            if progress is not None:
                progress(done)
        return done

    def _fold(self, logs: Sequence[UserLog]) -> ModelState:
        """The states after the events of some logs, which are stored if they are new."""
        rows = [row for row, log in enumerate(logs) if log.state is not None]
        if rows and len(rows) == len(logs):
            state = self._unpack(logs, self._empty)
        else:
            state = self.model.init_state(len(logs))
            if rows:
                state.assign(rows, self._unpack([logs[row] for row in rows], self._empty))
        added = [ids[ids > 0] for ids in (self.catalogue.ids(log.pending) for log in logs)]
        advance(self.step, state, added)
        lengths = list(map(len, added))
        self.counts.steps += lengths.count(1)
        self.counts.prefilled += sum(n for n in lengths if n > 1)
        self._save(logs, state)
        return state

    def _unpack(self, logs: Sequence[UserLog], like: ModelState) -> ModelState:
        """Stored states; `like` has their first tensors or all."""
        width = self._head_bytes if like is self._head else None
        data = bytearray().join(log.state[:width] for log in logs if log.state is not None)
        return like.unpack(torch.frombuffer(data, dtype=torch.uint8).reshape(len(logs), -1), self.dtype)

    def _save(self, logs: Sequence[UserLog], state: ModelState) -> None:
        rows = [row for row, log in enumerate(logs) if log.pending]
        if not rows:
            return
        changed = state if len(rows) == len(logs) else state.select(rows)
        packed = changed.pack(self.dtype).numpy()
        entries = []
        for row, data in zip(rows, packed, strict=True):
            log = logs[row]
            entries.append((log.user, log.revision, log.folded + len(log.pending), data.tobytes()))
        try:
            self.store.save(self.key, entries)
        except RunError as error:
            self.counts.unsaved += len(entries)
            logger.warning("%d states are not stored and will be computed again: %s", len(entries), error)


def advance(step: CapturedStep, state: ModelState, added: Sequence[np.ndarray]) -> None:
    """Appends items to the histories of users, in passes of bounded memory.

    Args:
        step: the step of a model in eval mode.
        state: the users' states, updated in place.
        added: the new item ids of each user, int64; may be empty.
    """
    model = step.model
    lengths = np.array([len(items) for items in added], dtype=np.int64)
    if model.carries_state:
        slots = np.minimum(lengths, PREFILL_ROWS)
    else:
        slots = np.minimum(lengths + state["position"].cpu().numpy(), model.max_len)
    with torch.inference_mode():
        for single in (True, False):
            rows = np.flatnonzero(lengths == 1 if single else lengths > 1)
            rows = rows[np.argsort(slots[rows], kind="stable")]  # some models pad to the longest of a pass
            while len(rows):
                size = fitting(model, slots[rows], MAX_SLOTS[state.device.type])
                _advance_some(step, state, added, np.sort(rows[:size]), single)
                rows = rows[size:]


def _advance_some(
    step: CapturedStep, state: ModelState, added: Sequence[np.ndarray], rows: np.ndarray, single: bool
) -> None:
    """Appends the items of some users in one pass; `single`: each has one item."""
    index = torch.from_numpy(rows)
    part = state if len(rows) == state.batch else state.select(index)
    items = torch.from_numpy(np.concatenate([added[row] for row in rows])).to(state.device)
    if single:
        step(items, part)
    else:
        lengths = [len(added[row]) for row in rows]
        offsets = torch.from_numpy(np.cumsum([0, *lengths])).to(state.device)
        part, _ = step.model.prefill(items, offsets, max(lengths), part)
    if part is not state:
        state.assign(index, part)


def batched(values: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of at most `size` values."""
    iterator = iter(values)
    while some := list(islice(iterator, size)):
        yield some

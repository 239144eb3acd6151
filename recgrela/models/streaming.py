"""States of users: a model advances them item by item at a cost that does not depend on the history."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from recgrela.nn import ModelState, Sequences, Stateful
from recgrela.parallel.table import ShardedTable

# Rows of a sequence that one pass of `prefill` takes; longer histories take several, so memory is bounded.
PREFILL_ROWS = 8192


class Streaming(nn.Module, ABC):
    """The part of a model that keeps states of users.

    A causal model of recurrent modules carries the modules' states, which have a fixed size and summarize the
    whole history. Any other model carries the last `max_len` items and encodes them again after each item:
    attention to learned positions, and attention to later items, change all rows when the window moves.

    Attributes:
        carries_state: whether the modules' states are carried. If not, a state is the last `max_len` items.
        max_table: the longest rotary table of `prefill`, which takes later rows one by one, with exact
            angles; None: the model has no table.
    """

    carries_state: bool = False
    max_table: int | None = None
    _stateful: list[Stateful] | None = None
    n_items: int
    max_len: int
    trains_on: tuple[str, ...]
    attends_to_padding: bool
    item_embedding: nn.Embedding | ShardedTable

    # ---- what the model provides

    @abstractmethod
    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        """See `SequenceModel.embed`."""

    @abstractmethod
    def look_up(self, items: Tensor) -> Tensor:
        """See `SequenceModel.look_up`."""

    @abstractmethod
    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        """See `SequenceModel.encode`."""

    @abstractmethod
    def hidden_states(
        self,
        items: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        last_only: bool,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """See `SequenceModel.hidden_states`."""

    # ---- states

    @torch.no_grad()
    def init_state(self, batch: int) -> ModelState:
        """The state of `batch` users without items."""
        like = self.item_embedding.weight
        tensors = {
            "position": like.new_zeros(batch, dtype=torch.int64),
            "hidden": like.new_zeros(batch, like.shape[1]),
        }
        if not self.carries_state:
            return ModelState(tensors | {"items": like.new_zeros(batch, self.max_len, dtype=torch.int32)})
        for module in self._stateful_modules():
            for key, tensor in module.init_state(batch, like).items():
                tensors[f"{module.state_prefix}{key}"] = tensor
        return ModelState(tensors)

    def _stateful_modules(self) -> list[Stateful]:
        """The modules that have a state, and know the prefixes of their tensors from the first call on.

        They are those of the first call: a model whose modules are replaced later keeps their list.
        """
        if self._stateful is None:
            self._stateful = []
            for name, module in self.named_modules():
                if isinstance(module, Stateful):
                    module.state_prefix = f"{name}."
                    self._stateful.append(module)
        return self._stateful

    @torch.no_grad()
    def step(self, items: Tensor, state: ModelState) -> Tensor:
        """Appends one item to the history of each user, at a cost independent of its length.

        Args:
            items: [B] int64 item ids.
            state: the users' states, updated in place.

        Returns:
            The hidden states after the items, [B, D]; `scores` turns them into scores of the next items. For
            models that carry states they equal those of a pass over the whole history, to rounding; for
            others, those of a pass over its last `max_len` items.

        Raises:
            ValueError: the number of items is not that of the states; the model is in training mode.
        """
        self._check(items, state)
        batch = items.shape[0]
        if not self.carries_state:
            return self._step_window(items, state)
        hidden = self._advance(items, torch.arange(batch + 1, device=items.device), 1, state, 0)
        state["position"].add_(1)
        return hidden

    @torch.no_grad()
    def prefill(
        self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int, state: ModelState | None = None
    ) -> tuple[ModelState, Tensor]:
        """The states after whole histories.

        Args:
            items: [T] int64 item ids, histories end to end.
            cu_seqlens: [B + 1] integers; history b is items[cu_seqlens[b] : cu_seqlens[b + 1]], not empty.
            max_seqlen: the length of the longest history.
            state: the states of the users before these items, not changed; None: new users.

        Returns:
            The states, and the hidden states after the last items, [B, D].

        Raises:
            ValueError: a history is empty, offsets do not fit; the model is in training mode.
        """
        offsets = cu_seqlens.tolist()
        lengths = [end - begin for begin, end in itertools.pairwise(offsets)]
        if offsets[0] != 0 or offsets[-1] != items.shape[0] or any(n < 1 for n in lengths):
            raise ValueError(
                f"cu_seqlens must start at 0, increase and end at {items.shape[0]}; histories are not empty"
            )
        longest = max(lengths, default=0)
        if max_seqlen < longest:
            raise ValueError(f"max_seqlen is {max_seqlen}, but a history has {longest} items")
        state = self.init_state(len(lengths)) if state is None else state.clone()
        self._check(cu_seqlens[1:], state)
        if not self.carries_state:
            self._prefill_window(items, lengths, state)
            return state, state["hidden"].clone()
        before = state["position"].tolist()
        for begin in range(0, longest, PREFILL_ROWS):
            size = min(PREFILL_ROWS, longest - begin)
            users = [user for user, length in enumerate(lengths) if length > begin]
            near = [user for user in users if self._has_table(before[user] + begin + size)]
            if near:
                self._prefill_rows(items, offsets, before, near, begin, size, state)
            far = [user for user in users if not self._has_table(before[user] + begin + size)]
            for row in range(begin, begin + size):
                still = [user for user in far if lengths[user] > row]
                if still:
                    self._prefill_rows(items, offsets, before, still, row, 1, state)
        return state, state["hidden"].clone()

    def _has_table(self, end: int) -> bool:
        """Whether several rows up to position `end` can be taken at once."""
        return self.max_table is None or end <= self.max_table

    def _prefill_rows(
        self,
        items: Tensor,
        offsets: list[int],
        before: list[int],
        users: list[int],
        begin: int,
        size: int,
        state: ModelState,
    ) -> None:
        """Takes rows begin .. begin + size - 1 of the histories of some users, who had `before` items."""
        pieces = [
            items[offsets[user] + begin : min(offsets[user] + begin + size, offsets[user + 1])]
            for user in users
        ]
        sizes = torch.tensor([0, *map(len, pieces)], device=items.device)
        everyone = len(users) == state.batch
        part = state if everyone else state.select(users)
        max_position = max(before[user] for user in users) + begin + size
        self._advance(torch.cat(pieces), sizes.cumsum(0), max(map(len, pieces)), part, max_position)
        part["position"].add_(sizes[1:])
        if not everyone:
            state.assign(users, part)

    def _advance(
        self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int, state: ModelState, max_position: int
    ) -> Tensor:
        """Passes rows that follow `state` through the model; updates all of it but the position."""
        sequences = Sequences.of(cu_seqlens, items.shape[0], max_seqlen)
        sequences = replace(sequences, state=state, max_position=max_position)
        x = self.embed(items, sequences)
        hidden = self.encode(x, sequences if sequences.is_step else sequences.last_only())
        state["hidden"].copy_(hidden)
        return hidden

    @torch.no_grad()
    def fixed_step(self, items: Tensor, state: ModelState) -> Tensor:
        """`step` with shapes that depend on B alone, so that it can be traced.

        Windows are padded to `max_len`, which costs more than `step` for short histories.

        Raises:
            NotImplementedError: the model's result depends on the padding.
            ValueError: see `step`.
        """
        if self.carries_state:
            return self.step(items, state)
        self._check(items, state)
        if not (self.attends_to_padding or "all" in self.trains_on):
            raise NotImplementedError(
                "it attends to later items but not to padding, so its shapes depend on the histories"
            )
        self._append(items, state)
        lengths = state["position"].clamp(max=self.max_len)
        offsets = torch.arange(state.batch + 1, device=lengths.device) * self.max_len
        rows = state["items"].flatten().to(torch.int64)
        return state["hidden"].copy_(self.hidden_states(rows, offsets, self.max_len, True, lengths))

    # ---- models whose state is the last items

    def _step_window(self, items: Tensor, state: ModelState) -> Tensor:
        self._append(items, state)
        self._encode_windows(state)
        return state["hidden"].clone()

    def _append(self, items: Tensor, state: ModelState) -> None:
        """Appends an item to each window and counts it."""
        window, position = state["items"], state["position"]
        self.look_up(items)  # raises for an id out of range, before the state changes
        # The items are at the left until the window is full; then it moves.
        window.copy_(torch.where((position >= self.max_len)[:, None], window.roll(-1, 1), window))
        place = position.clamp(max=self.max_len - 1)[:, None]
        window.scatter_(1, place, items[:, None].to(window.dtype))
        position.add_(1)

    def _prefill_window(self, items: Tensor, lengths: list[int], state: ModelState) -> None:
        window, position = state["items"], state["position"]
        self.look_up(items)  # raises for an id out of range
        filled = position.clamp(max=self.max_len).tolist()
        for user, history in enumerate(items.to(window.dtype).split(lengths)):
            kept = torch.cat([window[user, : filled[user]], history])[-self.max_len :]
            window[user, : len(kept)] = kept
        position.add_(torch.tensor(lengths, dtype=position.dtype, device=position.device))
        self._encode_windows(state)

    def _encode_windows(self, state: ModelState) -> None:
        """Encodes the windows of all users into `state["hidden"]`."""
        lengths = state["position"].clamp(max=self.max_len)
        window = state["items"]
        valid = torch.arange(self.max_len, device=window.device) < lengths[:, None]
        items = window[valid].to(torch.int64)
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        if items.shape[0]:
            hidden = self.hidden_states(items, cu_seqlens, int(lengths.max()), True)
            state["hidden"].copy_(hidden)

    def _check(self, items: Tensor, state: ModelState) -> None:
        if self.training:
            raise ValueError("states are those of a model in eval mode; call model.eval() first")
        if items.dim() != 1 or items.shape[0] != state.batch:
            raise ValueError(f"items of shape {tuple(items.shape)} do not fit states of {state.batch} users")
        self._stateful_modules()

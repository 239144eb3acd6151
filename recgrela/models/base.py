"""What every model shares: an item table with tied output weights, packed and padded entry points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.errors import ConfigError
from recgrela.ops import linear_cross_entropy
from recgrela.suggest import near_miss

Objective = Literal["last", "all"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_choices(config: Any) -> None:
    """Every field of a configuration that is a Literal holds one of its values. Raises ConfigError."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            value, allowed = getattr(config, name), get_args(kind)
            if value not in allowed:
                hint = near_miss(str(value), map(str, allowed))
                raise ConfigError(
                    f"model.{name}: {value!r} is not one of {', '.join(map(str, allowed))}{hint}"
                )


class SequenceModel(nn.Module, ABC):
    """A next-item model over packed histories.

    A subclass makes `item_embedding` and `hidden_states`; row 0 of the item table is the padding item. Scores
    are products with the item table, over every row of it.

    Attributes:
        config: its typed configuration.
        n_items: rows of the item table, the padding row included.
        max_len: the length that histories are cut to.
        trains_on: the objectives that make sense for it.
        bounded: whether no sequence may be longer than `max_len`.
        padded_len: what every sequence is padded to, for a model that computes padding slots; else None.
    """

    item_embedding: nn.Embedding
    trains_on: tuple[Objective, ...]
    padded_len: int | None = None
    bounded: bool = False

    def __init__(self, config: Any, n_items: int, max_len: int) -> None:
        super().__init__()
        if n_items < 2:
            raise ConfigError(
                f"a model needs at least one item besides the padding row, got n_items={n_items}"
            )
        if max_len < 1:
            raise ConfigError(f"max_len must be at least 1, got {max_len}")
        self.config, self.n_items, self.max_len = config, n_items, max_len

    @abstractmethod
    def hidden_states(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int, last_only: bool) -> Tensor:
        """The state behind each item, [T, D], or behind the last item of each sequence, [B, D]."""

    @classmethod
    @abstractmethod
    def from_official(cls, state_dict: dict[str, Tensor], config: dict[str, Any]) -> SequenceModel:
        """See `recgrela.models.from_official`."""

    # ---- packed: rows of all sequences end to end

    def score_packed(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Scores of every item as the next one.

        Args:
            items: [T] int64 item ids, sequences end to end.
            cu_seqlens: [B + 1] int64; sequence b is items[cu_seqlens[b] : cu_seqlens[b + 1]], not empty.
            max_seqlen: the longest sequence.

        Returns:
            [B, n_items], column 0 being the padding item.
        """
        return self.hidden_states(items, cu_seqlens, max_seqlen, True) @ self.item_embedding.weight.T

    def loss_packed(
        self,
        items: Tensor,
        cu_seqlens: Tensor,
        target: Tensor,
        max_seqlen: int,
        objective: Objective = "last",
        loss: Loss = linear_cross_entropy,
    ) -> Tensor:
        """Mean loss of the next items; by default cross-entropy over every row of the item table.

        Args:
            items, cu_seqlens, max_seqlen: as for `score_packed`.
            target: int64 item ids, [B] for objective "last", [T] for "all" (each row's next item).
            loss: of hidden rows, item table and targets; see `recgrela.losses`.

        Raises:
            ConfigError: if the model cannot be trained on this objective.
        """
        if objective not in self.trains_on:
            raise ConfigError(
                f"objective {objective!r} does not go with this {self.config.name}; it trains on: "
                f"{', '.join(self.trains_on)}"
            )
        hidden = self.hidden_states(items, cu_seqlens, max_seqlen, objective == "last")
        return loss(hidden, self.item_embedding.weight, target)

    # ---- padded: [B, L], right-padded with 0

    def score(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Scores of every item as the next one.

        Args:
            item_seq: [B, L] int64 item ids, right-padded with 0.
            lengths: [B] int64, each 1 .. L.

        Returns:
            [B, n_items].

        Raises:
            ValueError: on shapes, lengths or ids out of range.
        """
        return self.score_packed(*self._pack(item_seq, lengths))

    def loss(self, item_seq: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of the next item.

        Args:
            item_seq, lengths: as for `score`.
            target: [B] int64: what follows the last item (objective "last"), or [B, L]: what follows each
                item (objective "all"), where entries behind a sequence's end are ignored.
        """
        items, cu_seqlens, max_seqlen = self._pack(item_seq, lengths)
        if target.dim() == 2:
            if target.shape != item_seq.shape:
                raise ValueError(f"target must be [B] or {tuple(item_seq.shape)}, got {tuple(target.shape)}")
            target = target[self._valid(item_seq, lengths)]
            return self.loss_packed(items, cu_seqlens, target, max_seqlen, "all")
        return self.loss_packed(items, cu_seqlens, target, max_seqlen, "last")

    @staticmethod
    def _valid(item_seq: Tensor, lengths: Tensor) -> Tensor:
        return torch.arange(item_seq.shape[1], device=item_seq.device) < lengths[:, None]

    def _pack(self, item_seq: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, int]:
        if item_seq.dim() != 2 or lengths.shape != item_seq.shape[:1]:
            raise ValueError(
                f"item_seq must be [B, L] and lengths [B], got {tuple(item_seq.shape)} and "
                f"{tuple(lengths.shape)}"
            )
        if len(lengths) and (int(lengths.min()) < 1 or int(lengths.max()) > item_seq.shape[1]):
            raise ValueError(
                f"lengths must be 1 .. {item_seq.shape[1]}, got {lengths.min()} .. {lengths.max()}"
            )
        items = item_seq[self._valid(item_seq, lengths)]
        if len(items) and (int(items.min()) < 0 or int(items.max()) >= self.n_items):
            raise ValueError(f"item ids must be 0 .. {self.n_items - 1}, got {items.min()} .. {items.max()}")
        cu_seqlens = F.pad(lengths.to(torch.int64).cumsum(0), (1, 0))
        return items, cu_seqlens, int(lengths.max()) if len(lengths) else 0

"""What every model shares: an item table with tied output weights, packed and padded entry points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.official import renamed
from recgrela.nn import Dropout, Sequences
from recgrela.ops import linear_cross_entropy
from recgrela.system.errors import ConfigError

Objective = Literal["last", "all"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Encode = Callable[[Tensor, Sequences, "Tensor | None"], tuple[Tensor, "Tensor | None"]]


class SequenceModel(nn.Module, ABC):
    """A next-item model over packed histories: embeddings, an encoder, products with the item table.

    A subclass makes `encode`, the way from embedded rows to the states behind them. Its configuration has at
    least name, hidden_size and dropout. Row 0 of the item table is the padding item; scores are over every
    row.

    Args:
        config: its typed configuration.
        n_items: rows of the item table, the padding row included.
        max_len: the length that histories are cut to.

    Attributes:
        trains_on: the objectives that make sense for it.
        bounded: whether no sequence may be longer than `max_len`.
        padded_len: what every sequence is padded to, for a model that computes padding slots; else None.
        counted_len: what every sequence takes room for, whatever its length; else None.
        dense: whether a module puts sequences side by side, each as long as the longest.
        item_bias: [n_items] added to the scores, or None.
        norm_eps: of the LayerNorm behind the embeddings.
    """

    trains_on: tuple[Objective, ...]
    padded_len: int | None = None
    dense: bool = False
    bounded: bool = False
    item_bias: Tensor | None
    norm_eps: float = 1e-12

    def __init__(self, config: Any, n_items: int, max_len: int) -> None:
        super().__init__()
        if n_items < 2:
            raise ConfigError(
                f"a model needs at least one item besides the padding row, got n_items={n_items}"
            )
        if max_len < 1:
            raise ConfigError(f"max_len must be at least 1, got {max_len}")
        self.config, self.n_items, self.max_len = config, n_items, max_len
        # The padding row is scored and trained as an output row, but not through look-ups.
        self.item_embedding = nn.Embedding(n_items, config.hidden_size, padding_idx=0)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=self.norm_eps)
        self.register_parameter("item_bias", None)

    def reset_parameters(self) -> None:
        """N(0, 0.02) for every Linear and Embedding, the padding row too; PyTorch's default for the rest.

        A subclass calls it when all of its modules are there.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @abstractmethod
    def encode(self, x: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        """Embedded rows x [T, D] -> the states behind them [T, D], or behind `rows` [B] alone, [B, D].

        `rows`, where given, are the last items of the sequences: the last block can do without the others.
        """

    def encode_for_loss(
        self, x: Tensor, sequences: Sequences, rows: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`encode`, and what to add to the loss."""
        return self.encode(x, sequences, rows), None

    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        """[T] int64 item ids -> [T, D]."""
        return self.norm(self.dropout(F.embedding(items, self.item_embedding.weight, padding_idx=0)))

    @property
    def counted_len(self) -> int | None:
        return self.padded_len

    # ---- the authors' weights; see `recgrela.models.from_official`

    OFFICIAL_NAMES: ClassVar[list[tuple[str, str]]] = []  # theirs (a pattern) -> ours
    OFFICIAL_UNUSED: ClassVar[str] = r"$^"  # a pattern: theirs that no score depends on

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> Any:
        """Our configuration, from the authors' parameters and settings. KeyError: what is missing."""
        raise ConfigError(f"{cls.__name__} has no authors' weights to read")

    @classmethod
    def own_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' parameters, or their gradients, under our names and in our layout."""
        return renamed(state, cls.OFFICIAL_NAMES)

    # ---- packed rows to states

    def hidden_states(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int, last_only: bool) -> Tensor:
        """The state behind each item, [T, D], or behind the last item of each sequence, [B, D].

        Args:
            items, cu_seqlens, max_seqlen: as for `score_packed`.
            last_only: of the last items alone, which costs less.

        Raises:
            ValueError: if a sequence is longer than a bounded model takes.
        """

        def encode(x: Tensor, sequences: Sequences, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return self.encode(x, sequences, rows), None

        return self._hidden(encode, items, cu_seqlens, max_seqlen, last_only)[0]

    def _hidden(
        self, encode: Encode, items: Tensor, cu_seqlens: Tensor, max_seqlen: int, last_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.bounded and max_seqlen > self.max_len:
            raise ValueError(
                f"a sequence of {max_seqlen} items does not fit this model's max_len={self.max_len}"
            )
        if items.shape[0] == 0:
            return self.item_embedding.weight[:0], None
        sequences, real = Sequences.of(cu_seqlens, items.shape[0], max_seqlen), None
        if self.padded_len is not None:
            sequences, real = sequences.padded(self.padded_len)
            items = items.new_zeros(sequences.num_rows).index_copy(0, real, items)
        hidden, extra = encode(
            self.embed(items, sequences), sequences, sequences.last() if last_only else None
        )
        return hidden if real is None or last_only else hidden[real], extra

    def _output(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and an item table whose products are the scores: the biases are a column more."""
        weight = self.item_embedding.weight
        if self.item_bias is None:
            return hidden, weight
        ones = hidden.new_ones(hidden.shape[0], 1)
        return torch.cat([hidden, ones], dim=1), torch.cat([weight, self.item_bias[:, None]], dim=1)

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
        scores = self.hidden_states(items, cu_seqlens, max_seqlen, True) @ self.item_embedding.weight.T
        return scores if self.item_bias is None else scores + self.item_bias

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
            loss: of hidden rows, item table and targets; see `recgrela.training.losses`.

        Raises:
            ConfigError: if the model cannot be trained on this objective.
        """
        if objective not in self.trains_on:
            raise ConfigError(
                f"objective {objective!r} does not go with this {self.config.name}; it trains on: "
                f"{', '.join(self.trains_on)}"
            )
        last_only = objective == "last"
        hidden, extra = self._hidden(self.encode_for_loss, items, cu_seqlens, max_seqlen, last_only)
        mean = loss(*self._output(hidden), target)
        return mean if extra is None else mean + extra

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

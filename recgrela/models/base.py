"""The interface of every model: an item table, an encoder, scores and losses of packed and padded batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.official import OfficialWeights
from recgrela.models.streaming import Streaming
from recgrela.nn import AddNorm, Dropout, SeedStream, Sequences
from recgrela.ops import embedding
from recgrela.parallel.rows import RowShards
from recgrela.parallel.table import ShardedTable, Table, cross_entropy, draw, make_table, rows_for
from recgrela.settings.model import ModelConfig
from recgrela.settings.train import Objective
from recgrela.system.errors import ConfigError, RunError

# Parameters with a row for each item; all others do not depend on the catalogue.
PER_ITEM = ("item_embedding.weight", "item_bias")

Loss = Callable[[Tensor, Table, Tensor, "Tensor | None"], Tensor]
Encode = Callable[[Tensor, Sequences], tuple[Tensor, "Tensor | None"]]


class SequenceModel(Streaming):
    """A next-item model over packed histories: embeddings, an encoder, products with the item table.

    A subclass implements `encode`, which turns embedded rows into states. Row 0 of the item table is the
    padding item; scores cover every row.

    Args:
        config: the model's typed configuration.
        n_items: the number of rows of the item table, including the padding row.
        max_len: the length that histories are cut to.

    Attributes:
        trains_on: the objectives that the model can be trained on.
        attends_to_padding: whether every sequence is padded to `max_len` and the padding affects the result;
            the setting `padding` decides, in models that have it.
        max_positions: the longest sequence that the model takes; None: any length.
        item_embedding: the item table; a `ShardedTable` in a model built with `rows`, whose ranks make every
            pass over the model together.
        item_bias: [n_items] added to the scores, or this rank's of a sharded table, or None.
        norm_eps: the eps of the LayerNorm after the embeddings.
        official: how to convert the authors' weights; None if there are none.
        capture_obstacle: why a CUDA graph cannot hold a pass over the model; None: it can.
    """

    config: ModelConfig
    trains_on: tuple[Objective, ...]
    attends_to_padding: bool
    max_positions: int | None
    item_bias: Tensor | None
    norm_eps: float = 1e-12
    official: ClassVar[OfficialWeights | None] = None
    capture_obstacle: ClassVar[str | None] = None

    def __init__(self, config: ModelConfig, n_items: int, max_len: int) -> None:
        super().__init__()
        if n_items < 2:
            raise ConfigError(f"n_items: {n_items} is below 2, the padding row and one item")
        if max_len < 1:
            raise ConfigError(f"max_len: {max_len} is below 1")
        self.config, self.n_items, self.max_len = config, n_items, max_len
        self.attends_to_padding = getattr(config, "padding", "mask") == "attend"
        self.max_positions = max_len if self.attends_to_padding else None
        # The padding row is scored, and trained as an output row, but gets no gradient from look-ups.
        self.item_embedding = make_table(n_items, config.hidden_size)
        self.dropout = Dropout(config.dropout)
        self.norm = AddNorm(config.hidden_size, eps=self.norm_eps, post_norm=True)
        self.register_parameter("item_bias", None)

    @property
    def table(self) -> Table:
        """The item table as losses take it: its rows [n_items, D], or the `ShardedTable`."""
        module = self.item_embedding
        return module if isinstance(module, ShardedTable) else module.weight

    @property
    def shards(self) -> RowShards | None:
        """How the rows of the item table and of the item bias are divided; None if they are whole."""
        return self.item_embedding.rows if isinstance(self.item_embedding, ShardedTable) else None

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters, with the rows of a sharded table that other processes have."""
        numbers = {name: p.numel() for name, p in self.named_parameters() if p.requires_grad}
        if self.shards is not None:
            numbers["item_embedding.weight"] = self.n_items * self.item_embedding.embedding_dim
            if "item_bias" in numbers:
                numbers["item_bias"] = self.n_items
        return sum(numbers.values())

    # ---- for subclasses

    @abstractmethod
    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Embedded rows x [T, D] -> the states of the wanted rows: [T, D], or [B, D] of the last items.

        `recgrela.nn.run_blocks` runs a stack of blocks of which only the last is limited to the wanted rows.
        """

    def encode_for_loss(self, x: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor | None]:
        """The result of `encode`, and a term to add to the loss or None."""
        return self.encode(x, sequences), None

    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        """Item ids [T] int64 -> embedded rows [T, D]."""
        rate = self.dropout.rate if self.training else 0.0
        if not len(items):
            return self.look_up(items)
        rows, places, padding_idx = rows_for(self.table, items)
        return embedding(
            places,
            rows,
            self.norm.weight,
            self.norm.bias,
            eps=self.norm_eps,
            dropout=rate,
            padding_idx=padding_idx,
            seed=sequences.seeds(1) if rate else None,
        )

    def look_up(self, items: Tensor) -> Tensor:
        """Item ids [T] int64 -> rows of the item table [T, D]."""
        if isinstance(self.item_embedding, ShardedTable):
            return self.item_embedding(items)
        return embedding(items, self.item_embedding.weight, padding_idx=0)

    def slots(self, lengths: np.ndarray) -> int:
        """The number of slots (items and padding) that sequences of these lengths [B] take in one pass.

        Memory grows with it, so batches are cut by it. It must not decrease when a sequence is added. A model
        whose modules need the dense form overrides it.
        """
        return len(lengths) * self.max_len if self.attends_to_padding else int(lengths.sum())

    def reset_parameters(self) -> None:
        """Draws all Linear and Embedding weights, the padding row too, with std 0.02; zeroes Linear biases.

        All other parameters keep PyTorch's defaults. A subclass calls it once all of its modules exist.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, ShardedTable):
                draw(module.weight, partial(nn.init.normal_, std=0.02), module.rows)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    # ---- states

    def hidden_states(
        self,
        items: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        last_only: bool,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """The state after each item, [T, D], or after the last item of each sequence, [B, D].

        Args:
            items, cu_seqlens, max_seqlen: see `score_packed`.
            last_only: whether to return the last items' states only, which costs less.
            lengths: [B] int64, the number of items at the start of each sequence, in a model that attends to
                padding, for sequences that are already padded to `max_len` with item 0. None: each row of
                `items` is an item.

        Raises:
            ValueError: a sequence is longer than `max_positions`.
        """
        sequences = Sequences.of(cu_seqlens, items.shape[0], max_seqlen, lengths)
        return self._hidden(lambda *rows: (self.encode(*rows), None), items, sequences, last_only)[0]

    def _hidden(
        self, encode: Encode, items: Tensor, sequences: Sequences, last_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        max_seqlen = sequences.max_seqlen
        if self.max_positions is not None and max_seqlen > self.max_positions:
            raise ValueError(
                f"max_seqlen: {max_seqlen} is above the {self.max_positions} positions of this "
                f"{self.config.name}; shorten the sequences"
            )
        if items.shape[0] == 0:
            return self.look_up(items), None
        if self.training:
            sequences = replace(sequences, stream=SeedStream(items.device))
        item_rows = None
        if self.attends_to_padding and sequences.lengths is None:
            sequences, item_rows = sequences.padded(self.max_len)
            items = items.new_zeros(sequences.num_rows).index_copy(0, item_rows, items)
        x = self.embed(items, sequences)
        hidden, extra = encode(x, sequences.last_only() if last_only else sequences)
        return hidden if item_rows is None or last_only else hidden[item_rows], extra

    # ---- packed batches: rows of all sequences end to end

    def score_packed(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Scores of every item as the next one.

        Args:
            items: [T] int64 item ids, sequences end to end.
            cu_seqlens: [B + 1] integers; sequence b is items[cu_seqlens[b] : cu_seqlens[b + 1]], not empty.
            max_seqlen: the length of the longest sequence.

        Returns:
            [B, n_items]; column 0 is the padding item.
        """
        return self.scores(self.hidden_states(items, cu_seqlens, max_seqlen, True))

    def scores(self, hidden: Tensor) -> Tensor:
        """States [B, D] -> scores of every item as the next one, [B, n_items].

        Raises:
            RunError: the item table is sharded, so that no rank has the scores of every item.
        """
        if isinstance(self.item_embedding, ShardedTable):
            raise RunError("scores of a sharded item table are not in one place; rank with `sharded_ranks`")
        scores = hidden @ self.item_embedding.weight.T
        return scores if self.item_bias is None else scores + self.item_bias

    def loss_packed(
        self,
        items: Tensor,
        cu_seqlens: Tensor,
        target: Tensor,
        max_seqlen: int,
        objective: Objective = "last",
        loss: Loss = cross_entropy,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of the next items.

        Args:
            items, cu_seqlens, max_seqlen: see `score_packed`; for objective "all", sequences may be empty.
            target: int64 item ids, [B] for objective "last", [T] for "all" (each row's next item). With
                objective "last" and fewer targets than sequences, the sequences after those with targets only
                fill the batch up and do not affect the loss.
            objective: "last" or "all".
            loss: a function of hidden rows, item table, targets and item bias, by default cross-entropy over
                every row of the item table; see `recgrela.training.losses`.
            lengths: see `hidden_states`; for objective "last".

        Raises:
            ConfigError: the model cannot be trained on this objective.
        """
        if objective not in self.trains_on:
            raise ConfigError(
                f"objective: this {self.config.name} cannot train on {objective!r}; expected "
                f"{' or '.join(self.trains_on)}"
            )
        last_only = objective == "last"
        sequences = Sequences.of(cu_seqlens, items.shape[0], max_seqlen, lengths)
        if last_only:
            sequences = replace(sequences, fillers=sequences.batch - target.shape[0])
        hidden, extra = self._hidden(self.encode_for_loss, items, sequences, last_only)
        if sequences.fillers:
            hidden = hidden[: target.shape[0]]
        mean = loss(hidden, self.table, target, self.item_bias)
        return mean if extra is None else mean + extra

    # ---- padded batches: [B, L], zeros after each sequence

    def score(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Scores of every item as the next one.

        Args:
            item_seq: [B, L] int64 item ids, right-padded with 0.
            lengths: [B] int64, each 1 .. L.

        Returns:
            [B, n_items].

        Raises:
            ValueError: shapes that do not fit; lengths or ids out of range.
        """
        return self.score_packed(*self._pack(item_seq, lengths))

    def loss(self, item_seq: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """The mean cross-entropy of the next item.

        Args:
            item_seq, lengths: see `score`.
            target: [B] int64, the item after the last one (objective "last"), or [B, L], the item after each
                (objective "all"), where entries after the end of a sequence are ignored.
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

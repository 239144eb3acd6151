"""Ranking of the items for all targets of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recgrela.data import Batch, EvalBatches
from recgrela.evaluation.lists import ListCounts
from recgrela.evaluation.metrics import Ranking, RankingCounts, seen_targets, summarize
from recgrela.models import SequenceModel
from recgrela.models.capture import SHARDED, capture_obstacle, filling_for, max_slots, small_batch
from recgrela.parallel.processes import Processes
from recgrela.parallel.score_blocks import ScoreBlocks, block_rows, pairs_removed, rank_targets
from recgrela.parallel.table import ShardedTable
from recgrela.settings.train import CUTOFFS
from recgrela.system.graphs import Capture, GraphedFunction
from recgrela.system.memory import check_fits
from recgrela.system.out_of_memory import MemoryPhase

HELPS = "lower train.eval_batch_size (--batch_size of recgrela.evaluate)"
RANKING = MemoryPhase("ranking the items", f"{HELPS}, then train.max_tokens")

# Scores in memory at a time, with up to 12 bytes for each. The items of a larger catalogue are scored in
# blocks. A GPU is faster with large ones.
MAX_SCORES = {"cpu": 1 << 23, "cuda": 1 << 26}


class Ranker:
    """Ranks the items for every target of a split, all of them and with the seen items removed.

    Scores are float32 even for a model trained in bfloat16, whose 8 bits would turn close scores into ties.
    The memory of scores is bounded whatever the number of items.

    Args:
        model: the model.
        batches: the batches of a split; those of the other split of the same data may follow.
        max_tokens: maximum number of item slots in one forward pass.
        capture: launches batches as CUDA graphs if possible, and keeps the graphs for the next ranking;
            see `GraphedFunction`. None: no graphs.
        processes: the processes that share the batches; None: only this one.
        cutoffs: the cut-offs of the metrics.

    Raises:
        ConfigError: the scores of a block cannot fit into memory.

    Attributes:
        obstacle: why `capture` is not used; None if it is, or is not given.
    """

    def __init__(
        self,
        model: SequenceModel,
        batches: EvalBatches,
        max_tokens: int,
        capture: Capture | None = None,
        processes: Processes | None = None,
        cutoffs: Sequence[int] = CUTOFFS,
    ) -> None:
        self._model, self._max_tokens, self._processes = model, max_tokens, processes or Processes()
        self._cutoffs = cutoffs
        self._batch_size = min(batches.batch_size, batches.num_users)
        device = model.item_embedding.weight.device
        self._max_scores = MAX_SCORES.get(device.type, MAX_SCORES["cpu"])
        self._block = block_rows(self._batch_size, model.n_items, self._max_scores)
        if model.shards is None:
            check_fits({"scores": score_bytes(self._batch_size, self._block)}, device, HELPS)
        self._counts = RankingCounts(device, cutoffs)
        self._filling = filling_for(model, "last", batches.max_seqlen)
        self._graphed: GraphedFunction | None = None  # ranks batches
        self._graphed_states: GraphedFunction | None = None  # encodes batches
        self.obstacle: str | None = None
        if capture is not None and isinstance(model.item_embedding, ShardedTable):
            self.obstacle = SHARDED
        elif capture is not None:
            is_whole = self._block == model.n_items
            # The items to remove from a filled batch's ranking, at one address for all graphs.
            columns = model.n_items if is_whole else 0
            self._removed = torch.empty(self._batch_size, columns, dtype=torch.bool, device=device)
            self.obstacle = self._find_obstacle(is_whole)
            if self.obstacle is None:
                self._graphed_states = GraphedFunction(self._encode_filled, device, capture)
                if is_whole:
                    self._graphed = GraphedFunction(self._rank_filled, device, capture)

    @RANKING
    @torch.no_grad()
    def __call__(
        self,
        batches: EvalBatches,
        after_batch: Callable[[], None] | None = None,
        popularity: Tensor | None = None,
    ) -> Ranking:
        """Rank the items for every target of a split.

        Args:
            batches: the split.
            after_batch: called after each batch, as often by all processes; may raise an exception to stop.
            popularity: [n_items] int64, the training events of each item, for the figures of recommended
                items; None: without them, which is faster.

        Raises:
            RunError: the model gives NaN scores.
        """
        was_training = self._model.training
        self._model.eval()  # restored below
        try:
            self._counts.reset()
            ranks, own = [], iter(batches)
            device = self._model.item_embedding.weight.device
            lists = None if popularity is None else ListCounts(popularity.to(device), self._cutoffs)
            # All processes take part in each round, so that they can agree to stop.
            for _ in range(-(-batches.num_batches // self._processes.world)):
                batch = next(own, None)
                if isinstance(self._model.item_embedding, ShardedTable):
                    ranks.append(self._rank_by_all(batch, batches, self._model.item_embedding, lists))
                elif batch is not None:
                    ranks.append(self._rank(batch, batches.seen(batch), lists))
                if after_batch is not None:
                    after_batch()
            return self._collect(ranks, batches, lists)
        finally:
            self._model.train(was_training)

    def _collect(self, ranks: list[Tensor], batches: EvalBatches, lists: ListCounts | None) -> Ranking:
        """The ranking of all targets from the ranks and items [3, B] of this process's batches."""
        own = torch.cat([torch.zeros(3, 0, dtype=torch.int32), *(rank.cpu() for rank in ranks)], 1)
        parts = [
            iter(part.split(batches.batch_size)) for part in self._processes.gather_rows(own.T.contiguous())
        ]
        ordered = [next(parts[number % len(parts)]) for number in range(batches.num_batches)]
        counts = self._processes.sum_(self._counts.read())
        figures = None if lists is None else lists.figures(self._processes)
        *found, items = torch.cat(ordered).T.contiguous()
        return summarize(torch.stack(found), items, batches.users, counts, self._cutoffs, figures)

    def _rank(self, batch: Batch, seen: tuple[Tensor, Tensor], lists: ListCounts | None) -> Tensor:
        """The ranks and targets of a batch, [3, B]."""
        if self._graphed is not None and lists is None:
            mark(self._removed[: batch.size].zero_(), seen)
            ranks = self._graphed(*self._filling(batch), seen_targets(seen, batch.target))
            assert ranks is not None
        else:
            ranks = self._count(self._encode(batch), batch.target, seen, lists)
        return torch.cat([ranks, batch.target[None].int()])

    def _encode(self, batch: Batch) -> list[Tensor]:
        """The states after the sequences of a batch, from one pass after the other."""
        if self._graphed_states is not None:
            states = self._graphed_states(*self._filling(batch))
            assert states is not None
            return [states[: batch.size]]
        parts = batch.parts(self._max_tokens, self._model.slots)
        return [self._model.hidden_states(p.items, p.cu_seqlens, p.max_seqlen, True) for p in parts]

    def _count(
        self, hidden: list[Tensor], target: Tensor, seen: tuple[Tensor, Tensor], lists: ListCounts | None
    ) -> Tensor:
        """The ranks [2, B] of targets after sequences with some states."""
        removed = pairs_removed(*seen, len(target))
        k = 0 if lists is None else lists.k
        found = rank_targets(self._blocks(hidden), target, removed, k)
        if lists is not None:
            lists.add(found.best, target)
        return self._counts.add(found, seen_targets(seen, target))

    def _blocks(self, hidden: list[Tensor]) -> ScoreBlocks:
        table = self._model.table
        assert not isinstance(table, ShardedTable)
        return ScoreBlocks.of_table(hidden, table, self._model.item_bias, self._block)

    def _rank_by_all(
        self, batch: Batch | None, batches: EvalBatches, table: ShardedTable, lists: ListCounts | None
    ) -> Tensor:
        """`_rank` with the scores of all processes; None: this one has no batch."""
        model, device = self._model, table.weight.device
        none = torch.empty(0, dtype=torch.int64, device=device)
        parts, target, seen = [], none, (none, none)
        if batch is not None:
            parts, target = list(batch.parts(self._max_tokens, model.slots)), batch.target
            seen = batches.seen(batch)
        (passes,) = self._processes.max(len(parts))  # all processes look items up equally often
        hidden = [model.hidden_states(p.items, p.cu_seqlens, p.max_seqlen, True) for p in parts]
        hidden += [model.look_up(none) for _ in range(passes - len(parts))]
        k = 0 if lists is None else lists.k
        found = table.ranks(torch.cat(hidden), target, seen, model.item_bias, k)
        if lists is not None:
            lists.add(found.best, target)
        ranks = self._counts.add(found, seen_targets(seen, target))
        return torch.cat([ranks, target[None].int()])

    def _encode_filled(
        self, items: Tensor, cu_seqlens: Tensor, target: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """The states of a filled batch."""
        return self._model.hidden_states(items, cu_seqlens, self._filling.max_seqlen, True, lengths)

    def _rank_filled(self, items: Tensor, cu_seqlens: Tensor, target: Tensor, *more: Tensor) -> Tensor:
        """The ranks [2, B] of a filled batch whose seen items are marked in `_removed`.

        Args:
            items, cu_seqlens, target: see `Filling`.
            more: the lengths if there are any, and whether targets are seen, [B] bool.
        """
        *lengths, is_seen = more
        hidden = self._encode_filled(items, cu_seqlens, target, *lengths)[: len(target)]

        def removed(start: int, size: int) -> Tensor:
            return self._removed[: len(target)]  # there is one block

        return self._counts.add(rank_targets(self._blocks([hidden]), target, removed), is_seen)

    def _find_obstacle(self, is_whole: bool) -> str | None:
        model, max_seqlen = self._model, self._filling.max_seqlen
        if max_slots(model, "last", self._batch_size, max_seqlen) > self._max_tokens:
            return (
                f"train.max_tokens {self._max_tokens} cuts batches into several passes; raise it, or lower "
                "train.eval_batch_size"
            )
        inputs = self._filling(small_batch(model, "last", max_seqlen))
        is_seen = torch.zeros(1, dtype=torch.bool, device=self._removed.device)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                self._removed.zero_()
                if is_whole:
                    return capture_obstacle(model, lambda: self._rank_filled(*inputs, is_seen))
                return capture_obstacle(model, lambda: self._encode_filled(*inputs))
        finally:
            model.train(was_training)


def score_bytes(users: int, items: int) -> int:
    """Bytes of a block of float32 scores and of the masks that count them."""
    return users * items * 12


def mark(mask: Tensor, places: tuple[Tensor, Tensor]) -> None:
    """Sets entries of a mask to True; a Python True would be copied from the host, which then waits."""
    mask.index_put_(places, torch.ones((), dtype=torch.bool, device=mask.device))

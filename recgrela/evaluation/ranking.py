"""Ranking of the items for all users of a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recgrela.data import Batch, EvalBatches
from recgrela.evaluation.metrics import Ranking, RankingCounts, summarize
from recgrela.models import SequenceModel
from recgrela.models.capture import SHARDED, capture_obstacle, filling_for, max_slots, small_batch
from recgrela.parallel.processes import Processes
from recgrela.parallel.table import ShardedTable
from recgrela.system.graphs import Capture, GraphedFunction
from recgrela.system.memory import check_fits
from recgrela.system.out_of_memory import MemoryPhase

HELPS = "lower train.eval_batch_size (--batch_size of recgrela.evaluate)"
RANKING = MemoryPhase("ranking the items", f"{HELPS}, then train.max_tokens")


class Ranker:
    """Ranks the items for every user of a split, all of them and with the seen items removed.

    Scores are float32 even for a model trained in bfloat16, whose 8 bits would turn close scores into ties.

    Args:
        model: the model.
        batches: the batches of a split; those of the other split of the same data may follow.
        max_tokens: maximum number of item slots in one forward pass.
        capture: launches batches as CUDA graphs if possible, and keeps the graphs for the next ranking;
            see `GraphedFunction`. None: no graphs.
        processes: the processes that share the batches; None: only this one.

    Raises:
        ConfigError: the scores of a batch cannot fit into memory.

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
    ) -> None:
        self._model, self._max_tokens, self._processes = model, max_tokens, processes or Processes()
        self._batch_size = batches.max_size
        device = model.item_embedding.weight.device
        if model.shards is None:  # those of a divided table are computed in bounded parts
            scores = score_bytes(self._batch_size, model.n_items)
            check_fits({"the scores of a batch": scores}, device, HELPS)
        self._counts = RankingCounts(device)
        self._filling = filling_for(model, "last", batches.max_seqlen)
        self._graphed: GraphedFunction | None = None
        self.obstacle: str | None = None
        if capture is not None and isinstance(model.item_embedding, ShardedTable):
            self.obstacle = SHARDED
        elif capture is not None:
            # The items to remove from a filled batch's ranking, at one address for all graphs.
            self._removed = torch.empty(self._batch_size, model.n_items, dtype=torch.bool, device=device)
            self.obstacle = self._find_obstacle()
            if self.obstacle is None:
                self._graphed = GraphedFunction(self._rank_filled, device, capture)

    @RANKING
    @torch.no_grad()
    def __call__(self, batches: EvalBatches, after_batch: Callable[[], None] | None = None) -> Ranking:
        """Rank the items for every user of a split.

        Args:
            batches: the split.
            after_batch: called after each batch, as often by all processes; may raise an exception to stop.

        Raises:
            RunError: the model gives NaN scores.
        """
        was_training = self._model.training
        self._model.eval()  # restored below
        try:
            self._counts.reset()
            ranks, own = [], iter(batches)
            # All processes take part in each round, so that they can agree to stop.
            for _ in range(-(-batches.num_batches // self._processes.world)):
                batch = next(own, None)
                if isinstance(self._model.item_embedding, ShardedTable):
                    ranks.append(self._rank_by_all(batch, batches, self._model.item_embedding))
                elif batch is not None:
                    ranks.append(self._rank(batch, batches.seen(batch)))
                if after_batch is not None:
                    after_batch()
            return self._collect(ranks, batches)
        finally:
            self._model.train(was_training)

    def _collect(self, ranks: list[Tensor], batches: EvalBatches) -> Ranking:
        """The ranking of all users from the ranks [2, B] of this process's batches."""
        own = torch.cat([torch.zeros(2, 0, dtype=torch.int32), *(rank.cpu() for rank in ranks)], 1)
        parts = [
            iter(part.split(batches.batch_size)) for part in self._processes.gather_rows(own.T.contiguous())
        ]
        ordered = [next(parts[number % len(parts)]) for number in range(batches.num_batches)]
        counts = self._processes.sum_(self._counts.read())
        return summarize(torch.cat(ordered).T.contiguous(), counts)

    def _rank(self, batch: Batch, seen: tuple[Tensor, Tensor]) -> Tensor:
        """The ranks of a batch, [2, B]."""
        model = self._model
        if self._graphed is not None:
            mark(self._removed[: batch.size].zero_(), seen)
            ranks = self._graphed(*self._filling(batch))
            assert ranks is not None
            return ranks
        removed = torch.zeros(batch.size, model.n_items, dtype=torch.bool, device=batch.items.device)
        mark(removed, seen)
        scores = [
            model.score_packed(part.items, part.cu_seqlens, part.max_seqlen)
            for part in batch.parts(self._max_tokens, model.slots)
        ]
        return self._counts.add(torch.cat(scores), batch.target, removed)

    def _rank_by_all(self, batch: Batch | None, batches: EvalBatches, table: ShardedTable) -> Tensor:
        """The ranks of a batch, [2, B], with the scores of all processes; None: this one has no batch."""
        model, device = self._model, table.weight.device
        none = torch.empty(0, dtype=torch.int64, device=device)
        parts, target, seen = [], none, (none, none)
        if batch is not None:
            parts, target = list(batch.parts(self._max_tokens, model.slots)), batch.target
            seen = batches.seen(batch)
        (passes,) = self._processes.max(len(parts))  # all processes look items up equally often
        hidden = [model.hidden_states(p.items, p.cu_seqlens, p.max_seqlen, True) for p in parts]
        hidden += [model.look_up(none) for _ in range(passes - len(parts))]
        return self._counts.add_ranks(*table.ranks(torch.cat(hidden), target, seen, model.item_bias))

    def _rank_filled(
        self, items: Tensor, cu_seqlens: Tensor, target: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """The ranks of a filled batch; its seen items are marked in `_removed`."""
        length, size = self._filling.max_seqlen, target.shape[0]
        hidden = self._model.hidden_states(items, cu_seqlens, length, True, lengths)
        return self._counts.add(self._model.scores(hidden[:size]), target, self._removed[:size])

    def _find_obstacle(self) -> str | None:
        model, max_seqlen = self._model, self._filling.max_seqlen
        if max_slots(model, "last", self._batch_size, max_seqlen) > self._max_tokens:
            return (
                f"train.max_tokens {self._max_tokens} cuts batches into several passes; raise it, or lower "
                "train.eval_batch_size"
            )
        inputs = self._filling(small_batch(model, "last", max_seqlen))
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                self._removed.zero_()
                return capture_obstacle(model, lambda: self._rank_filled(*inputs))
        finally:
            model.train(was_training)


def score_bytes(users: int, items: int) -> int:
    """Bytes of the float32 scores of a batch, with its mask of seen items."""
    return users * items * 5


def mark(mask: Tensor, places: tuple[Tensor, Tensor]) -> None:
    """Sets entries of a mask to True; a Python True would be copied from the host, which then waits."""
    mask.index_put_(places, torch.ones((), dtype=torch.bool, device=mask.device))

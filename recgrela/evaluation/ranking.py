"""Ranks every user of a split with a model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from recgrela.data import EvalBatches
from recgrela.evaluation.metrics import Ranking, RankingSums
from recgrela.models import SequenceModel


@torch.no_grad()
def rank_all(
    model: SequenceModel,
    batches: EvalBatches,
    device: torch.device,
    max_tokens: int,
    after_batch: Callable[[], None] | None = None,
) -> Ranking:
    """Rank every user of a split, with and without the items seen before.

    In float32 also after training in bfloat16, whose 8 bits would make ties of near scores.

    Args:
        model: in any mode; its mode is restored.
        batches: the split.
        device: where model and batches are.
        max_tokens: most item slots in one forward pass.
        after_batch: called after each batch; may raise to stop.

    Raises:
        RunError: the model gives NaN.
    """
    was_training = model.training
    model.eval()
    try:
        sums = RankingSums(device)
        for batch in batches:
            scores = torch.cat(
                [
                    model.score_packed(part.items, part.cu_seqlens, part.max_seqlen)
                    for part in batch.parts(max_tokens, model.slots)
                ]
            )
            sums.add(scores, batch.target, batches.seen(batch))
            if after_batch is not None:
                after_batch()
        return sums.result()
    finally:
        model.train(was_training)

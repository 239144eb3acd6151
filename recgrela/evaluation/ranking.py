"""Ranking of the items for all users of a split."""

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
    """Rank the items for every user of a split, all of them and with the seen items removed.

    Scores are float32 even for a model trained in bfloat16, whose 8 bits would turn close scores into ties.

    Args:
        model: the model; its train or eval mode is restored.
        batches: the split.
        device: the device of model and batches.
        max_tokens: maximum number of item slots in one forward pass.
        after_batch: called after each batch; may raise an exception to stop.

    Raises:
        RunError: the model gives NaN scores.
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

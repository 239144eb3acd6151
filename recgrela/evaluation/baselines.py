"""All trivial models at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recgrela.data import EvalBatches, Interactions
from recgrela.evaluation.knn import ItemKNN
from recgrela.evaluation.metrics import Ranking
from recgrela.evaluation.trivial import FollowLast, Popularity, RepeatLast, TrivialModel, rank_trivial
from recgrela.settings.train import CUTOFFS

TRIVIAL_MODELS: dict[str, Callable[[Interactions], TrivialModel]] = {
    kind.name: kind for kind in (Popularity, RepeatLast, FollowLast, ItemKNN)
}


def rank_trivial_models(
    data: Interactions, batches: EvalBatches, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, Ranking]:
    """Rank a split with every trivial model, by name, with the figures of recommended items.

    Args:
        data: the interactions, whose training events are counted.
        batches: the split, on the CPU.
        cutoffs: the cut-offs of the metrics.
    """
    popularity = data.train_item_counts()
    return {
        name: rank_trivial(make(data), batches, cutoffs, popularity) for name, make in TRIVIAL_MODELS.items()
    }

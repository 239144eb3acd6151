"""What prevents the steps of a run from being CUDA graphs."""

from __future__ import annotations

from recgrela.data.filling import Filling
from recgrela.models.capture import capture_obstacle, max_slots, small_batch
from recgrela.training.step import TrainStep


def step_obstacle(step: TrainStep, filling: Filling) -> str | None:
    """Why steps cannot be captured, with a remedy; None if they can be.

    Computes gradients of a small batch to find out, and discards them.
    """
    model, config = step.model, step.config
    slots = max_slots(model, config.objective, config.batch_size, filling.max_seqlen)
    if slots > step.max_tokens:
        return (
            f"train.max_tokens {step.max_tokens} cuts batches of up to {slots} slots into several passes; "
            "raise it, or lower train.batch_size"
        )
    items, cu_seqlens, target, *lengths = filling(small_batch(model, config.objective, filling.max_seqlen))

    def add_gradients() -> None:
        step.add_gradients(items, cu_seqlens, target, lengths[0] if lengths else None, filling.max_seqlen)

    compiled, step.loss_packed = step.loss_packed, model.loss_packed
    try:
        return capture_obstacle(model, add_gradients)
    finally:
        step.loss_packed = compiled
        step.clear()
        step.loss_sum.zero_()

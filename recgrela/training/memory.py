"""What a training run needs in any case, compared with the memory that there is before it is allocated.

These are lower bounds: a run that passes may still run out of memory, which `MemoryPhase` reports.
"""

from __future__ import annotations

import torch

from recgrela.models import SequenceModel
from recgrela.models.sizes import parameter_bytes
from recgrela.settings.run import RunConfig
from recgrela.system.memory import check_fits
from recgrela.system.out_of_memory import MemoryPhase

SMALLER_MODEL = "lower model.hidden_size or model.num_layers, or raise data.min_item_events for fewer items"
SMALLER_PASS = "lower train.max_tokens or train.batch_size, then model.hidden_size or data.max_len"
BUILDING = MemoryPhase("building the model", SMALLER_MODEL)


@BUILDING
def check_weights_fit(
    config: RunConfig, n_items: int, device: torch.device, item_rows: int | None = None
) -> None:
    """Raises ConfigError if weights, gradients and Adam's state cannot fit into the memory of a device.

    Args:
        config: the settings.
        n_items: the number of items, with the padding item.
        device: the device.
        item_rows: the number of rows of the item table that this process holds; None: all.
    """
    weights = parameter_bytes(config.model, n_items, config.data.max_len, item_rows)
    needs = {"weights": weights, "gradients": weights, "Adam's state": 2 * weights}
    check_fits(needs, device, SMALLER_MODEL)


def check_pass_fits(
    model: SequenceModel, config: RunConfig, num_targets: int, max_tokens: int, processes: int = 1
) -> None:
    """Raises ConfigError if the inputs of all layers in one pass cannot fit beside Adam's state.

    Args:
        model: the model, on its device.
        config: the settings.
        num_targets: the number of targets of an epoch.
        max_tokens: the largest number of item slots of a pass.
        processes: the number of processes that share a batch.
    """
    # The fullest pass of a batch lacks less than one sequence, and a sequence is never split.
    share = max(min(config.train.batch_size, num_targets) // processes, 1)
    slots = min(share, max(max_tokens - config.data.max_len, 1))
    if model.attends_to_padding:
        slots = max(slots, config.data.max_len)
    width = config.model.hidden_size * (2 if config.train.amp else 4)
    parameters = list(model.parameters())
    adam = 2 * sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    needs = {"Adam's state": adam, "the layers' inputs in a pass": slots * width * config.model.num_layers}
    check_fits(needs, parameters[0].device, SMALLER_PASS)

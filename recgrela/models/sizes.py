"""Sizes of models, counted without allocating them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from recgrela.models import build

MAX_LAYERS = 16


class _WithoutValues(TorchFunctionMode):
    """Allocates no data for `torch.empty`, which modules call for parameters, and skips their initialization.

    Other tensors are small and are made as usual. `torch.device("meta")` for all of them would import
    PyTorch's decompositions, which takes seconds.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        is_in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
        if func is torch.empty:
            return func(*args, **kwargs | {"device": "meta"})
        if is_in_place and isinstance(first, Tensor) and first.is_meta:
            return first
        return func(*args, **kwargs)


def parameter_bytes(config: Any, n_items: int, max_len: int, item_rows: int | None = None) -> int:
    """Bytes of a model's float32 parameters, counted without allocating them.

    A model of more than MAX_LAYERS layers has more: making thousands of modules would take minutes.

    Args:
        config, n_items, max_len: see `build`.
        item_rows: the number of rows of tables of items that are counted; None: all.
    """
    config = replace(config, num_layers=min(config.num_layers, MAX_LAYERS))
    with torch.random.fork_rng(devices=()), _WithoutValues():
        model = build(config, n_items, max_len)
    rows = n_items if item_rows is None else item_rows
    sizes = {name: x.numel() * x.element_size() for name, x in model.named_parameters()}
    for name in ("item_embedding.weight", "item_bias"):
        if name in sizes:
            sizes[name] = sizes[name] // n_items * rows
    return sum(sizes.values())

"""Launches of our CUDA operators.

The numbers hold for batches of many sequences that are not cut into segments.
python_tests/kernels/test_cuda_ops_on_cpu.py compares them with the launches on the SIMT host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _gated_rela(*args: Any) -> int:
    *_, causal, _eps, _return_state = args
    return 1 if causal else 2


def _gated_rela_backward(*args: Any) -> int:
    _d_y, _d_kv_state, _d_history, sums, *_, causal, _eps = args
    return 2 if causal else 4 if sums is None else 3


def _embedding_backward(*args: Any) -> int:
    _d_y, items, table, *_ = args
    passes = -(-(len(table) - 1).bit_length() // 12)  # of the sort
    return (1 if len(items) <= 8192 else 3) * passes + 2  # the sort of few rows has one kernel a pass


def _linear_cross_entropy(*args: Any) -> int:
    hidden, _weight, _target, _bias, dtype, label_smoothing, *_ = args
    wide = dtype == torch.float32 and hidden.shape[1] > 128  # operands are not converted first
    return 3 if wide and not label_smoothing else 4


def _mlp_backward(*args: Any) -> int:
    d_y, x, w1, *_ = args
    one_group = len(w1) <= (256 if x.element_size() == 2 else 128)
    # else one more for the gradient of x, or for its sums
    return 2 if one_group and max(x.shape[1], d_y.shape[1]) <= 64 else 3


def _mlp_block_backward(*args: Any) -> int:
    _d_y, _x, _norm_weight, _norm_bias, w1, *_, dtype, _with_z = args
    # With two groups of hidden columns, one more for the gradient of x, and one for those of the norm.
    return 2 if len(w1) <= (256 if dtype.itemsize == 2 else 128) else 4


def _selective_scan_backward(*args: Any) -> int:
    _d_y, _d_final_state, _u, _delta, A, *_ = args
    channels, states = A.shape
    block_channels = 6 if states > 128 else min(128, 2048 >> (states - 1).bit_length())
    columns = -(-channels // block_channels)
    at_once = max(1, min(columns, 2 * channels // states))
    passes = -(-columns // at_once)
    return 2 + passes * (2 if columns > 1 else 1) + 3  # states of segments, rows, sums over blocks


# By operator: a number, or a function of the operator's arguments.
LAUNCHES: dict[str, int | Callable[..., int]] = {
    "add_norm": 1,
    "add_norm_backward": 2,
    "causal_conv1d": 1,
    "causal_conv1d_backward": 2,
    "causal_conv1d_step": 1,
    "dropout": 1,
    "embedding": 1,
    "embedding_backward": _embedding_backward,
    "gated_rela": _gated_rela,
    "gated_rela_backward": _gated_rela_backward,
    "gated_rela_last": 1,
    "gated_rela_last_backward": 2,
    "gated_rela_step": 1,
    "linear": 1,
    "linear_backward": 2,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_cross_entropy_backward": 1,
    "linear_scan": 3,
    "linear_scan_backward": lambda *args: 4 if args[2].dim() == 1 else 3,
    "mlp": 1,
    "mlp_backward": _mlp_backward,
    "mlp_block": 1,
    "mlp_block_backward": _mlp_block_backward,
    "rela_projections": 1,
    "rela_projections_backward": 2,
    "selective_scan": 3,
    "selective_scan_backward": _selective_scan_backward,
    "selective_scan_step": 1,
}


def launches_of(name: str, args: tuple[Any, ...]) -> int:
    """Launches of one call of an operator.

    Raises:
        KeyError: if the table has no such operator.
    """
    if name not in LAUNCHES:
        raise KeyError(f"{name}: tools/step_cost/launches.py does not have its number of launches; add it")
    launches = LAUNCHES[name]
    return launches if isinstance(launches, int) else launches(*args)

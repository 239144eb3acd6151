"""Warp instructions of our operators, where they were counted.

Those of gated_rela, causal_conv1d, linear_scan and selective_scan are in
benchmarks/results/instructions.json. The others are the lengths of the loops over rows in the machine code
for sm_90, at D 64 and F 256; they include branches that a call may skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tools.gpu_estimate import RECORD, Call
from tools.instructions.record import KernelCounts, read_record

TILE = 16  # rows, and items, of a tile of scores
# By operator and the smallest size of an element.
ROW = {
    ("add_norm", 2): 62,
    ("add_norm", 4): 56,
    ("add_norm_backward", 2): 88,
    ("add_norm_backward", 4): 80,
    ("embedding", 4): 66,
    ("embedding_backward", 4): 106,  # 14 of them sort up to 4,096 items
    ("gated_rela_last", 2): 35,
    ("gated_rela_last", 4): 42,
    ("gated_rela_last_backward", 2): 64,
    ("gated_rela_last_backward", 4): 82,
    ("mlp", 2): 200,  # mlp and mlp_block: with GELU and both dropouts, without the other activations
    ("mlp", 4): 423,
    ("mlp_backward", 2): 402,
    ("mlp_backward", 4): 1022,
    ("mlp_block", 2): 235,
    ("mlp_block", 4): 450,
    ("mlp_block_backward", 2): 445,
    ("mlp_block_backward", 4): 1126,
}
# For each tile of 16 rows by 16 items, forward with gradients, D 64; without branches that are rarely taken.
SCORES = {2: 139, 4: 596}


@dataclass(frozen=True)
class Issue:
    """What a call issues.

    Attributes:
        instructions: warp instructions; 0 if they were not counted.
        warps: warps of a multiprocessor that issue them; 0 if unknown.
    """

    instructions: int = 0
    warps: float = 0.0


NO_ISSUE = Issue()


@cache
def recorded() -> tuple[str, Sequence[KernelCounts]]:
    """The commit of the record, and its kernels."""
    return read_record(RECORD)


def issue_of(name: str, args: tuple[Any, ...]) -> Issue:
    """What one call of an operator issues."""
    call = call_of(name, args)
    if call is None:
        return Issue(instructions_of(name, args))
    kernels = call.kernels(recorded()[1])
    each = [call.instructions(kernel) for kernel in kernels]
    time = sum(n / kernel.warps for n, kernel in zip(each, kernels, strict=True))
    return Issue(round(sum(each)), sum(each) / time if time else 0.0)


def call_of(name: str, args: tuple[Any, ...]) -> Call | None:
    """The call of an operator whose kernels are in the record; None for other operators."""
    op, backward = name.removesuffix("_backward"), name.endswith("_backward")
    form, batch = "", 1
    if op == "gated_rela":
        *operands, causal, _eps = args if backward else args[:-1]
        rows, cu_seqlens = (operands[6], operands[8]) if backward else (operands[2], operands[4])
        heads = operands[-1]
        variant = f"head {max(16, rows.shape[1] // heads)}"
        form, batch = "causal" if causal else "bidirectional", len(cu_seqlens) - 1
    elif op == "causal_conv1d":
        rows, weight = (args[0], args[3] if backward else args[1])
        variant = f"K {weight.shape[1]}"
    elif op == "linear_scan":
        rows, a = (args[0], args[2] if backward else args[1])
        variant = (
            f"{'complex' if rows.is_complex() else 'real'}, {'constant' if a.dim() == 1 else 'each step'}"
        )
    elif op == "selective_scan":
        rows, states = (args[0], (args[4] if backward else args[2]).shape[1])
        variant = f"N {8 << max(0, (states - 1).bit_length() - 3)}"
    else:
        return None
    dtype = "float32" if rows.is_complex() else str(rows.dtype).removeprefix("torch.")
    length = -(-len(rows) // batch)
    direction = "backward" if backward else "forward"
    return Call(op, direction, variant, dtype, form, batch, length, rows.shape[1])


def instructions_of(name: str, args: tuple[Any, ...]) -> int:
    """Warp instructions of one call of an operator that is not in the record; 0 if they were not counted."""
    if name in ("linear", "linear_backward"):
        return _linear(name, args)
    if name == "linear_cross_entropy":
        return _linear_cross_entropy(*args)
    if name in ("rela_projections", "rela_projections_backward"):
        return _rela_projections(name, args)
    tensors = [x for x in args if isinstance(x, Tensor)]
    size = min(
        *(x.element_size() for x in tensors), *(x.itemsize for x in args if isinstance(x, torch.dtype))
    )
    # The operands of an op on rows are rows, or parameters with fewer.
    return ROW.get((name, size), 0) * max(len(x) for x in tensors if x.dim())


def _linear(name: str, args: tuple[Any, ...]) -> int:
    """A constant for each tile of rows, and the products of each group of 64 outputs."""
    x, weight, _bias, weight2 = args[:4] if name == "linear" else args[3:7]
    outputs = len(weight) + (0 if weight2 is None else len(weight2))
    groups = -(-outputs // 64)
    if x.shape[1] > 64 or groups > 3:
        return 0
    if x.element_size() == 4:
        if name == "linear":
            return -(-len(x) // 16) * groups * (148 + 311 * -(-x.shape[1] // 32))
        return -(-len(x) // 32) * 4 * {1: 827, 2: 1303, 3: 2047}[groups]
    if name == "linear":
        return -(-len(x) // 16) * (74 + 152 * groups)
    return -(-len(x) // 64) * 8 * (80 + 200 * groups)


def _rela_projections(name: str, args: tuple[Any, ...]) -> int:
    """A constant for each tile of rows, and the products of the gate and of each group of 32 outputs."""
    if name == "rela_projections":
        x, gate_weight, qk_weight = args[0], args[5], args[7]
    else:
        x, gate_weight, qk_weight = args[4], args[9], args[10]
    has_gate, groups = gate_weight is not None, 0 if qk_weight is None else -(-len(qk_weight) // 32)
    if name == "rela_projections":
        return -(-len(x) // 16) * (481 + 174 * has_gate + 66 * groups)
    owners = -(-x.shape[1] // 32) * (1 + has_gate) + groups  # warps that own gradients of weights
    return -(-len(x) // 64) * (8 * (717 + 64 * has_gate + 23 * groups) + 127 * owners)


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, *args: Any) -> int:
    """For each tile of 16 rows by 16 items: a pass for d_hidden, and one for gradients of parameters."""
    _target, _bias, dtype, *_, needs_d_hidden, needs_d_weight, needs_d_bias = args
    if hidden.shape[1] != 64 or not (needs_d_hidden and (needs_d_weight or needs_d_bias)):
        return 0
    tiles = -(-len(hidden) // TILE) * -(-len(weight) // TILE)
    return tiles * SCORES[dtype.itemsize]

"""Warp instructions of our operators, where they were counted.

Those of gated_rela were measured; the others are the machine code for sm_90 of the loop over rows at D 64 and
bfloat16, with the branches that a call may skip.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

TILE = 16  # rows and channels of a chunk of gated_rela
CHUNK = {
    ("gated_rela", True, 4): 947,
    ("gated_rela", True, 2): 717,
    ("gated_rela", False, 2): 536,
    ("gated_rela_backward", True, 4): 2767,
    ("gated_rela_backward", True, 2): 1760,
    ("gated_rela_backward", False, 2): 1369,
}
ROW = {"add_norm": 62, "add_norm_backward": 88, "embedding": 66}


def instructions_of(name: str, args: tuple[Any, ...]) -> int:
    """Warp instructions of one call of an operator; 0 if they were not counted."""
    if name in ROW:
        return ROW[name] * max(len(x) for x in args if isinstance(x, Tensor))
    if name not in ("gated_rela", "gated_rela_backward"):
        return 0
    tensors, causal = (
        args[-15:] if name == "gated_rela" else args[3:],
        args[-3 if name == "gated_rela" else -2],
    )
    v, cu_seqlens = tensors[2], tensors[4]
    batch = len(cu_seqlens) - 1
    length = -(-v.shape[0] // batch)
    chunks = batch * -(-length // TILE) * v.shape[1] // TILE
    return chunks * CHUNK.get((name, causal, v.element_size()), 0)

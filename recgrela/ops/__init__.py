"""The operators alone: packed rows in, packed rows out, differentiable, usable under torch.compile.

The pure PyTorch function `*_reference` beside each op is its definition. Adding an op adds its lines here and
nothing else outside its own files: `OPS` collects what each declares about itself.
"""

from recgrela.ops.causal_conv1d import causal_conv1d, causal_conv1d_reference
from recgrela.ops.dropout import dropout, dropout_reference
from recgrela.ops.gated_rela import (
    RelaState,
    gated_rela,
    gated_rela_last,
    gated_rela_last_reference,
    gated_rela_reference,
)
from recgrela.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from recgrela.ops.linear_scan import linear_scan, linear_scan_reference
from recgrela.ops.mlp import mlp, mlp_reference
from recgrela.ops.rotary import rotary_table, rotate
from recgrela.ops.selective_scan import selective_scan, selective_scan_reference
from recgrela.ops.support import MISSING, OPS, has_kernels, implementation_for, support_table

__all__ = [
    "MISSING",
    "OPS",
    "RelaState",
    "causal_conv1d",
    "causal_conv1d_reference",
    "dropout",
    "dropout_reference",
    "gated_rela",
    "gated_rela_last",
    "gated_rela_last_reference",
    "gated_rela_reference",
    "has_kernels",
    "implementation_for",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "linear_scan",
    "linear_scan_reference",
    "mlp",
    "mlp_reference",
    "rotary_table",
    "rotate",
    "selective_scan",
    "selective_scan_reference",
    "support_table",
]

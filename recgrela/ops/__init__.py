"""The operators alone: packed rows in, packed rows out, differentiable, usable under torch.compile.

Each op has a pure PyTorch twin, `*_reference`, which is its definition.
"""

from recgrela.ops._library import has_kernels
from recgrela.ops.causal_conv1d import causal_conv1d, causal_conv1d_reference
from recgrela.ops.dropout import dropout, dropout_reference
from recgrela.ops.gated_rela import RelaState, gated_rela, gated_rela_reference
from recgrela.ops.gated_rela_last import gated_rela_last, gated_rela_last_reference
from recgrela.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from recgrela.ops.linear_scan import linear_scan, linear_scan_reference
from recgrela.ops.mlp import mlp, mlp_reference
from recgrela.ops.rotary import rotary_table, rotate
from recgrela.ops.selective_scan import selective_scan, selective_scan_reference

__all__ = [
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
]

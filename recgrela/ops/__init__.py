"""The operators: differentiable functions of packed rows that work under torch.compile, and steps of states.

For each op, the function `*_reference` in plain PyTorch is its definition. Each op registers itself in `OPS`,
so a new op needs only its own files and its lines here.
"""

from recgrela.ops.add_norm import add_norm, add_norm_reference
from recgrela.ops.causal_conv1d import causal_conv1d, causal_conv1d_reference
from recgrela.ops.causal_conv1d_step import causal_conv1d_step, causal_conv1d_step_reference
from recgrela.ops.dropout import dropout, dropout_reference
from recgrela.ops.embedding import embedding, embedding_reference
from recgrela.ops.gated_rela import (
    RelaState,
    gated_rela,
    gated_rela_last,
    gated_rela_last_reference,
    gated_rela_reference,
    gated_rela_step,
    gated_rela_step_reference,
)
from recgrela.ops.linear import linear, linear_reference
from recgrela.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from recgrela.ops.linear_scan import linear_scan, linear_scan_reference
from recgrela.ops.linear_scan_step import linear_scan_step, linear_scan_step_reference
from recgrela.ops.mlp import mlp, mlp_reference
from recgrela.ops.mlp_block import mlp_block, mlp_block_reference
from recgrela.ops.rela_block_step import rela_block_step, rela_block_step_reference
from recgrela.ops.rela_projections import rela_projections, rela_projections_reference
from recgrela.ops.rotary import rotary_angles, rotary_table, rotary_turns, rotate
from recgrela.ops.selective_scan import selective_scan, selective_scan_reference
from recgrela.ops.selective_scan_step import selective_scan_step, selective_scan_step_reference
from recgrela.ops.support import MISSING, OPS, has_kernels, implementation_for, support_table

__all__ = [
    "MISSING",
    "OPS",
    "RelaState",
    "add_norm",
    "add_norm_reference",
    "causal_conv1d",
    "causal_conv1d_reference",
    "causal_conv1d_step",
    "causal_conv1d_step_reference",
    "dropout",
    "dropout_reference",
    "embedding",
    "embedding_reference",
    "gated_rela",
    "gated_rela_last",
    "gated_rela_last_reference",
    "gated_rela_reference",
    "gated_rela_step",
    "gated_rela_step_reference",
    "has_kernels",
    "implementation_for",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "linear_reference",
    "linear_scan",
    "linear_scan_reference",
    "linear_scan_step",
    "linear_scan_step_reference",
    "mlp",
    "mlp_block",
    "mlp_block_reference",
    "mlp_reference",
    "rela_block_step",
    "rela_block_step_reference",
    "rela_projections",
    "rela_projections_reference",
    "rotary_angles",
    "rotary_table",
    "rotary_turns",
    "rotate",
    "selective_scan",
    "selective_scan_reference",
    "selective_scan_step",
    "selective_scan_step_reference",
    "support_table",
]

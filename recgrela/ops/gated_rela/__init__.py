"""Gated rotary-enhanced linear attention (RecGRELA, arXiv 2506.13315), of all rows or one per sequence."""

from recgrela.ops.gated_rela.last import gated_rela_last
from recgrela.ops.gated_rela.op import gated_rela
from recgrela.ops.gated_rela.reference import RelaState, gated_rela_last_reference, gated_rela_reference
from recgrela.ops.gated_rela.step import gated_rela_step, gated_rela_step_reference

__all__ = [
    "RelaState",
    "gated_rela",
    "gated_rela_last",
    "gated_rela_last_reference",
    "gated_rela_reference",
    "gated_rela_step",
    "gated_rela_step_reference",
]

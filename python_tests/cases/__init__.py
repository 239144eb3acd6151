"""Cases of the ops, shared by tests and benchmarks: one file for each op, and one list of them.

Generic tests and benchmarks read `CASES` alone. For each op in it they compare the CPU kernels with the
reference and the CUDA kernels with the CPU kernels, run compute-sanitizer, capture CUDA graphs, and measure
the speed.
"""

from python_tests.cases.add_norm import AddNormCase
from python_tests.cases.case import Case, Operands
from python_tests.cases.causal_conv1d import CausalConv1dCase
from python_tests.cases.embedding import EmbeddingCase
from python_tests.cases.gated_rela import GatedRelaCase
from python_tests.cases.gated_rela_last import GatedRelaLastCase
from python_tests.cases.linear import LinearCase
from python_tests.cases.linear_cross_entropy import LinearCrossEntropyCase
from python_tests.cases.linear_scan import LinearScanCase
from python_tests.cases.mlp import MLPCase
from python_tests.cases.mlp_block import MLPBlockCase
from python_tests.cases.rela_projections import RelaProjectionsCase
from python_tests.cases.selective_scan import SelectiveScanCase

CASES: tuple[type[Case], ...] = (
    GatedRelaCase,
    GatedRelaLastCase,
    CausalConv1dCase,
    LinearScanCase,
    SelectiveScanCase,
    EmbeddingCase,
    LinearCase,
    LinearCrossEntropyCase,
    AddNormCase,
    MLPCase,
    MLPBlockCase,
    RelaProjectionsCase,
)

__all__ = [
    "CASES",
    "AddNormCase",
    "Case",
    "CausalConv1dCase",
    "EmbeddingCase",
    "GatedRelaCase",
    "GatedRelaLastCase",
    "LinearCase",
    "LinearCrossEntropyCase",
    "LinearScanCase",
    "MLPBlockCase",
    "MLPCase",
    "Operands",
    "RelaProjectionsCase",
    "SelectiveScanCase",
]

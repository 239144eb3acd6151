"""A call of every operator that the library declares."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.cases import CASES
from python_tests.ops.step_case import EXAMPLES
from recgrela.ops import dropout
from recgrela.retrieval import ItemIndex

Calls = dict[str, tuple[Any, tuple[Any, ...]]]


class _Recorder(TorchDispatchMode):
    """Records the calls of our operators, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Calls = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "recgrela":
            self.found.setdefault(func._schema.name.split("::")[1], (func, args))
        return func(*args, **(kwargs or {}))


def calls_of_operators(dtype: torch.dtype = torch.float32) -> Calls:
    """A call of every operator that has a CPU kernel, the ops' and their gradients', by name."""
    with _Recorder() as recorded:
        for op in CASES:
            for case in op.variants((4, 3), dtype):
                case.results(case.operands())
        for make in EXAMPLES.values():
            with torch.no_grad():
                make(3).results()
        dropout(torch.randn(3, requires_grad=True), 0.5).sum().backward()
        table = torch.randn(9, 8)
        ItemIndex(table, None, "int8").search(table[:2], 3)
    return recorded.found


def declared_operators() -> set[str]:
    """The names of all operators in torch.ops.recgrela."""
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    return {name.split(".")[0] for namespace, _, name in names if namespace == "recgrela"}

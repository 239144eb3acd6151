"""Counts kernel launches and bytes of everything that PyTorch dispatches, from the shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tools.step_cost.instructions import NO_ISSUE, Issue, issue_of
from tools.step_cost.launches import launches_of

# Operators of PyTorch that launch no kernel; so do views, which the schema tells.
FREE = {
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "promote_types",
}
# Operators of PyTorch with several kernels. The numbers of those that sort are low estimates.
SEVERAL = {
    "cumsum": 2,
    "embedding_dense_backward": 12,
    "index_add": 2,  # a copy first
    "index_copy": 2,
    "index_put": 2,
    "native_layer_norm_backward": 2,
    "repeat_interleave": 3,
    "scatter_add": 2,
    "select_backward": 2,  # zeros first
    "slice_backward": 2,
    "sort": 8,
}
# Operators that read a part of their first operand, as large as the result.
GATHERS = {"embedding", "gather", "index", "index_select"}
# Operators that read and write a part of their first operand, as large as the last one.
SCATTERS = {"index_add_", "index_copy_", "index_put_", "scatter_", "scatter_add_"}
# Tensors of each list that one launch of an operator on lists takes, by the number of lists.
TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


@dataclass(frozen=True)
class Call:
    """One call of an operator on the device.

    Attributes:
        name: name of the operator; ours begin with "recgrela.".
        launches: kernels, copies and fills.
        bytes: bytes of the operands and the results, each counted once.
        issue: its warp instructions.
    """

    name: str
    launches: int
    bytes: int
    issue: Issue = NO_ISSUE


def size_of(x: Tensor) -> int:
    """Bytes of a tensor; an expanded tensor has those of its storage."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(values) if isinstance(x, Tensor))


def _is_view(function: torch._ops.OpOverload) -> bool:
    return any(result.alias_info and not result.alias_info.is_write for result in function._schema.returns)


def _multi_tensor_launches(name: str, args: Iterable[Any]) -> int:
    lists = [x for x in args if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
    number = len(lists) - name.startswith("_fused_")  # an optimizer's counts of steps take no place
    return -(-len(lists[0]) // TENSORS_PER_LAUNCH[number])


class Counter(TorchDispatchMode):
    """Records the calls on tensors of a device while it is active.

    Args:
        device_type: type of the device.

    Attributes:
        calls: the calls in order.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        super().__init__()
        self.device_type = device_type
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "recgrela" and not _has_cuda_kernel(function):
            with self:  # the operator is plain PyTorch, whose calls are counted
                return function._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        out = function(*args, **kwargs)
        name = function._schema.name.split("::")[1]
        found = [*_tensors(args), *_tensors(kwargs), *_tensors(out)]
        on_device = any(x.device.type == self.device_type for x in found)
        if function.namespace not in ("aten", "recgrela") or not on_device:
            return out
        if function.namespace == "recgrela":
            self._add(f"recgrela.{name}", launches_of(name, args), found, issue_of(name, args))
        elif name.startswith(("_foreach_", "_fused_")):
            self._add(name, _multi_tensor_launches(name, args), found)
        elif name not in FREE and not _is_view(function):
            parts = [out] if name in GATHERS else 2 * [*_tensors(args)][-1:] if name in SCATTERS else []
            whole = args[0] if parts else None
            part_bytes = sum(map(size_of, parts))
            self._add(name, SEVERAL.get(name, 1), [x for x in found if x is not whole], more_bytes=part_bytes)
        return out

    def _add(
        self,
        name: str,
        launches: int,
        tensors: Iterable[Tensor],
        issue: Issue = NO_ISSUE,
        more_bytes: int = 0,
    ) -> None:
        distinct = {id(x): x for x in tensors if x.device.type == self.device_type}
        size = sum(map(size_of, distinct.values())) + more_bytes
        self.calls.append(Call(name, launches, size, issue))


def _has_cuda_kernel(function: torch._ops.OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CUDA")


def by_operator(calls: Iterable[Call]) -> dict[str, tuple[int, int, int]]:
    """Calls, launches and bytes of each operator, in the order of bytes."""
    totals: dict[str, list[int]] = {}
    for call in calls:
        total = totals.setdefault(call.name, [0, 0, 0])
        for i, value in enumerate((1, call.launches, call.bytes)):
            total[i] += value
    ordered: list[tuple[str, list[int]]] = sorted(totals.items(), key=lambda item: -item[1][2])
    return {name: (total[0], total[1], total[2]) for name, total in ordered}

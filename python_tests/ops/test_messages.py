"""Messages of the compiled operators begin with the operator's name, without paths of the sources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recgrela._C as library
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.cases import CASES
from python_tests.ops.step_case import EXAMPLES
from recgrela.ops import OPS, dropout, linear_scan
from recgrela.ops.checks import lengths_of
from recgrela.retrieval import ItemIndex


class Calls(TorchDispatchMode):
    """Records the calls of our operators, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "recgrela":
            self.found.setdefault(func._schema.name.split("::")[1], (func, args))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """A call of every operator that has a CPU kernel: the ops' and their gradients'."""
    with Calls() as recorded:
        for op in CASES:
            for case in op.variants((4, 3), torch.float32):
                case.results(case.operands())
        for make in EXAMPLES.values():
            with torch.no_grad():
                make(3).results()
        dropout(torch.randn(3, requires_grad=True), 0.5).sum().backward()
        table = torch.randn(9, 8)
        ItemIndex(table, None, "int8").search(table[:2], 3)
    return recorded.found


def wrong(args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Arguments with one tensor that has another shape, another dtype or another device."""
    for i, x in enumerate(args):
        if isinstance(x, Tensor):
            for other in (x[None], x.flatten()[:0], x.to(torch.int8)):
                yield *args[:i], other, *args[i + 1 :]


def test_every_operator_is_called(calls: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    kernels = {name for op in OPS.values() if "cpu" in op.kernels for name in op.operators()}
    assert set(calls) >= kernels | {"top_k"}


@torch.no_grad()
def test_messages_begin_with_the_name(calls: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    for name, (operator, args) in calls.items():
        if name == "linear_cross_entropy_by_chunks":
            continue
        messages = []
        for changed in wrong(args):
            try:
                operator(*changed)
            except RuntimeError as error:
                messages.append(str(error))
        assert messages, name
        for message in messages:
            assert message.startswith(f"{name}: ") and "csrc" not in message and "\n" not in message


def test_values_are_refused_with_the_name() -> None:
    x, a = torch.randn(3, 2), torch.rand(2)
    with pytest.raises(RuntimeError, match=r"^linear_scan: cu_seqlens must start at 0 and end at 3"):
        linear_scan(x, a, torch.tensor([0, 2]))
    with pytest.raises(
        RuntimeError, match=r"^linear_scan: cu_seqlens must .* end at 9, got \[0, 1, .* 7\] \.\.\.$"
    ):
        lengths_of("linear_scan", torch.arange(20), 9)


def test_out_of_memory_is_a_memory_error_with_the_name() -> None:
    x = torch.zeros(1).expand(1 << 40, 64)  # the copy would have 256 TiB
    with pytest.raises(MemoryError, match=r"^linear_scan: "):
        linear_scan(x, torch.zeros(64), torch.tensor([0, 1 << 40]))


def test_the_library_does_not_contain_the_path_of_its_sources() -> None:
    words = re.findall(rb"[\w./+-]+", Path(library.__file__).read_bytes())
    paths = [word for word in words if word.startswith(b"/") and (b"/csrc/" in word or b"/torch/" in word)]
    assert not paths

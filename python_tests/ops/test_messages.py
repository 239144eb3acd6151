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

from python_tests.ops.operator_calls import Calls, calls_of_operators, declared_operators
from recgrela.ops import linear_scan
from recgrela.ops.checks import lengths_of


@pytest.fixture(scope="module")
def calls() -> Calls:
    return calls_of_operators()


def wrong(args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Arguments with one tensor that has another shape, another dtype or another device."""
    for i, x in enumerate(args):
        if isinstance(x, Tensor):
            for other in (x[None], x.flatten()[:0], x.to(torch.int8)):
                yield *args[:i], other, *args[i + 1 :]


def test_every_operator_is_called(calls: Calls) -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert set(calls) == {name for name in declared_operators() if has_kernel(f"recgrela::{name}", "CPU")}


@torch.no_grad()
def test_messages_begin_with_the_name(calls: Calls) -> None:
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

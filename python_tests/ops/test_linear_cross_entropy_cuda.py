from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close
from recgrela.ops import linear_cross_entropy, linear_cross_entropy_reference


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(1000, 64), 0.2 * torch.randn(3000, 64)
    target = torch.randint(3000, (1000,))
    there = [x.to("cuda", dtype).requires_grad_() for x in (hidden, weight)]
    double = [x.detach().double().cpu().requires_grad_() for x in there]
    loss = linear_cross_entropy(*there, target.cuda(), max_logits=1 << 20)
    expected = linear_cross_entropy_reference(*double, target)
    assert_close("loss", expected, loss.cpu(), 1e-5)
    grads = (torch.autograd.grad(expected, double), torch.autograd.grad(loss, there))
    for a, b in zip(*grads, strict=True):
        assert_close("gradient", a, b.cpu(), 1e-4 if dtype == torch.float32 else 2e-2)


@needs_gpu
def test_targets_out_of_range_on_a_gpu() -> None:
    """In a process of its own, because a device-side assertion ends the use of the device."""
    code = """
import torch
from recgrela.ops import linear_cross_entropy
hidden, weight = torch.randn(5, 64, device="cuda"), torch.randn(7, 64, device="cuda")
linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 7, 2, 3], device="cuda"))
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "device-side assert" in done.stderr

"""Every model of the registry under torch.compile. A file of its own, because compilation takes long."""

from __future__ import annotations

import pytest
import torch

from python_tests.models.forms import TARGET, make, packed
from python_tests.support.tensors import assert_close
from recgrela.models import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_compiles(name: str) -> None:
    """Without a graph break, except at a GRU, which torch.compile does not trace."""
    model, (items, cu_seqlens, longest) = make(name, num_layers=1), packed()
    parameters = list(model.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(model.loss_packed, fullgraph=name != "SIGMA", backend="aot_eager", dynamic=True)
    grads = [
        torch.autograd.grad(loss(items, cu_seqlens, TARGET, longest), parameters, allow_unused=True)
        for loss in (model.loss_packed, compiled)
    ]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close("gradient", a, b, 1e-9)

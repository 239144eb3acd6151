"""Results of every model do not depend on PyTorch's defaults of dtype and device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from python_tests.models.forms import FORMS, TARGET, make, packed
from python_tests.support.defaults import check_every_default


@pytest.mark.parametrize("form", FORMS)
def test_results_do_not_depend_on_defaults(form: str) -> None:
    """Scores, and the loss of training and its gradients."""
    model, (items, cu_seqlens, longest) = make(form), packed()

    def results() -> dict[str, Tensor]:
        torch.manual_seed(0)
        loss = model.train().loss_packed(items, cu_seqlens, TARGET, longest)
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        with torch.no_grad():
            scores = model.eval().score_packed(items, cu_seqlens, longest)
        found = {n: d for n, d in zip(parameters, gradients, strict=True) if d is not None}
        return found | {"loss": loss.detach(), "scores": scores}

    check_every_default(results)

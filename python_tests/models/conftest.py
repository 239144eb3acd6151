from __future__ import annotations

import pytest

from recgrela.ops import (
    gated_rela_last_reference,
    gated_rela_reference,
    linear_scan_reference,
    selective_scan_reference,
)


@pytest.fixture(params=["kernels", "reference"])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The models on the compiled ops, and on their definitions."""
    if request.param == "reference":
        monkeypatch.setattr("recgrela.nn.rela.gated_rela", gated_rela_reference)
        monkeypatch.setattr("recgrela.nn.rela.gated_rela_last", gated_rela_last_reference)
        monkeypatch.setattr("recgrela.models.lrurec.linear_scan", linear_scan_reference)
        monkeypatch.setattr("recgrela.models.recblr.linear_scan", linear_scan_reference)
        monkeypatch.setattr("recgrela.nn.mamba.selective_scan", selective_scan_reference)
    return request.param

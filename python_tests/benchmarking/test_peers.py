"""The peers of the op benchmarks compute what our ops compute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import packages, peers
from python_tests.cases import (
    CASES,
    Case,
    CausalConv1dCase,
    GatedRelaCase,
    LinearScanCase,
    SelectiveScanCase,
)
from python_tests.cases.case import gradients
from python_tests.cases.compare import TOLERANCES, errors_of, fault_of
from python_tests.support.packages import install
from recgrela.ops import linear_scan_reference, selective_scan_reference

EQUAL = (19,) * 3


def fault(case: Case, peer: peers.Peer) -> str:
    assert peer.call is not None, peer.note
    x = case.operands()
    got = gradients({"y": peer.call(x)}, x)
    return fault_of(errors_of(case.expected(x), got), TOLERANCES[case.dtype])


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)
def test_forms_in_plain_pytorch_compute_the_same(op: type[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    for case in op.variants(EQUAL, torch.float64, **({"joined": True} if op is GatedRelaCase else {})):
        eager = peers.eager_peers(case)
        assert [peer.name for peer in eager] == [f"eager {form}" for form in case.forms]
        for peer in eager + peers.compiled_peers(case):
            assert not fault(case, peer), f"{case} {peer.name}"


def test_long_masks_and_loops_are_not_measured() -> None:
    rela = peers.eager_peers(GatedRelaCase(lengths=(16_384,) * 8, dtype=torch.bfloat16))
    assert [peer.call is None for peer in rela] == [True, False]
    assert "L=16384" in rela[0].note
    scan = peers.eager_peers(SelectiveScanCase(lengths=(4096,) * 8))
    assert all(peer.call is None and "L=4096" in peer.note for peer in scan)


def test_a_package_that_is_not_installed_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    installed = {family.name: family.is_installed() for family in peers.FAMILIES}
    assert installed.pop("eager") and installed.pop("torch.compile")
    assert installed == dict.fromkeys(packages.PACKAGES, False)


def test_a_package_that_does_not_load_has_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "causal_conv1d.py").write_text("raise ImportError('undefined symbol: x')\n")
    monkeypatch.delitem(sys.modules, "causal_conv1d", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (peer,) = peers.PackagePeers("causal_conv1d")(CausalConv1dCase(lengths=(4,)))
    assert peer.call is None
    assert peer.note == "cannot be imported: ImportError: undefined symbol: x"


# Stand-ins with the signatures of the packages


def linear_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, normalize: bool) -> tuple[Tensor, None]:
    """The signature of fla: [B, T, H, K]."""
    assert scale == 1 and not normalize
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT).tril() @ v).transpose(1, 2), None


def causal_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The signature of fast_transformers: [B, H, L, E]."""
    return (q @ k.mT).tril() @ v


def convolution(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """The signature of causal_conv1d: [B, D, L]."""
    assert activation == "silu"
    y = torch.nn.functional.conv1d(x, weight[:, None], bias, padding=weight.shape[1] - 1, groups=len(weight))
    return torch.nn.functional.silu(y[..., : x.shape[2]])


def warp_scan(gates: Tensor, tokens: Tensor) -> Tensor:
    """The signature of accelerated_scan: [B, C, L], L a power of 2."""
    assert gates.is_contiguous() and gates.shape[2].bit_count() == 1 and gates.shape[2] >= 32
    cu_seqlens = torch.arange(len(gates) + 1) * gates.shape[2]
    h = linear_scan_reference(tokens.mT.flatten(0, 1), gates.mT.flatten(0, 1), cu_seqlens)
    assert isinstance(h, Tensor)
    return h.view(gates.mT.shape).mT


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """The signature of mamba_ssm: [B, I, L]."""
    assert delta_softplus
    rows = [t.mT.flatten(0, 1) for t in (u, delta, B, C, z)]
    cu_seqlens = torch.arange(len(u) + 1) * u.shape[2]
    y = selective_scan_reference(rows[0], rows[1], A, rows[2], rows[3], D, rows[4], delta_bias, cu_seqlens)
    assert isinstance(y, Tensor)
    return y.view(u.mT.shape).mT


@pytest.mark.parametrize(
    "name, path, attributes, case, unusable",
    [
        (
            "flash-linear-attention",
            "fla.ops.linear_attn",
            {"chunk_linear_attn": linear_attention},
            GatedRelaCase(lengths=EQUAL, joined=True),
            GatedRelaCase(lengths=EQUAL, joined=True, causal=False),
        ),
        (
            "fast-transformers",
            "fast_transformers.causal_product",
            {"causal_dot_product": causal_product},
            GatedRelaCase(lengths=EQUAL, joined=True),
            GatedRelaCase(lengths=EQUAL, joined=True, dtype=torch.bfloat16),
        ),
        (
            "causal_conv1d",
            "causal_conv1d",
            {"causal_conv1d_fn": convolution},
            CausalConv1dCase(lengths=EQUAL),
            None,
        ),
        (
            "mamba_ssm",
            "mamba_ssm.ops.selective_scan_interface",
            {"selective_scan_fn": selective_scan_fn},
            SelectiveScanCase(lengths=EQUAL, channels=5, num_states=3),
            None,
        ),
        (
            "accelerated_scan",
            "accelerated_scan.warp",
            {"scan": warp_scan},
            LinearScanCase(lengths=EQUAL, channels=5),
            LinearScanCase(lengths=EQUAL, dtype=torch.complex64, per_step=False),
        ),
    ],
)
def test_packages_compute_the_same(
    name: str,
    path: str,
    attributes: dict[str, Any],
    case: Case,
    unusable: Case | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (family,) = (family for family in peers.FAMILIES if family.name == name)
    assert [op.op for op in CASES if family.op == op.op] == [case.op]
    (peer,) = family.peers(case)
    assert peer.call is None and peer.note == packages.NOT_INSTALLED
    install(monkeypatch, path, **attributes)
    (peer,) = family.peers(case)
    assert not fault(case, peer)
    if unusable is not None:
        (peer,) = family.peers(unusable)
        assert peer.call is None and "only" in peer.note

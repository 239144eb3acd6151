"""Every op is registered, exported and documented, and runs without its kernel too."""

from __future__ import annotations

import importlib
import inspect
import re
import threading
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import recgrela.ops
from python_tests.support.project import ROOT
from python_tests.support.tensors import assert_close
from recgrela.ops import MISSING, OPS, has_kernels, implementation_for, support, support_table
from recgrela.ops.support import Implementation, Kernel, Op, plain_pytorch

HALF = (torch.float16, torch.bfloat16)
FLOAT32_FIRST = ("add_norm", "linear_cross_entropy", "mlp_block")  # ops whose first output is float32
DIFFERENTIABLE = [name for name, op in OPS.items() if not op.in_place]  # test_steps.py has the others
PAGE = ROOT / "docs/ops.md"
needs_page = pytest.mark.skipif(not PAGE.exists(), reason="needs the pages of the repository")


def own_tests(name: str) -> ModuleType:
    """The module of the op's tests: `example` returns float64 operands with gradients and other arguments."""
    return importlib.import_module(f"python_tests.ops.test_{name}")


def results(
    name: str, operands: dict[str, Tensor], others: dict[str, Any], half: torch.dtype | None = None
) -> list[Tensor]:
    """Outputs and gradients of an op; `half` is the dtype for operands that may have half precision."""
    if half is not None:
        single = getattr(own_tests(name), "FLOAT32", ())
        operands = {n: x.detach().to(torch.float32 if n in single else half) for n, x in operands.items()}
        operands = {n: x.requires_grad_() for n, x in operands.items()}
        others = {n: x.float() if is_floating(x) else x for n, x in others.items()}
    out = getattr(recgrela.ops, name)(**operands, **others)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    loss = sum((y.double() * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum() for y in outputs)
    return [y.detach() for y in outputs] + list(torch.autograd.grad(loss, list(operands.values())))


def is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def test_every_op_is_exported_with_its_reference() -> None:
    for name in OPS:
        assert {name, f"{name}_reference"} <= set(recgrela.ops.__all__)
    public = {name for name in recgrela.ops.__all__ if f"{name}_reference" in recgrela.ops.__all__}
    assert public == set(OPS)


@needs_page
def test_the_page_has_the_table_of_kernels() -> None:
    assert f"<!-- support -->\n\n{support_table()}\n" in PAGE.read_text()


@needs_page
@pytest.mark.parametrize("name", OPS)
def test_the_page_has_the_signature(name: str) -> None:
    section = re.search(rf"^## {name}\n\n```\n{name}\((.*?)\) -> ", PAGE.read_text(), re.S | re.M)
    assert section, f"docs/ops.md has no section {name} that begins with the signature"
    parameters = inspect.signature(getattr(recgrela.ops, name)).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    expected = str(inspect.Signature(bare))[1:-1].replace("'", '"').replace("e-0", "e-")
    assert " ".join(section[1].split()) == expected


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_kernel_and_its_fallback_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cpu" not in OPS[name].kernels:
        pytest.skip(f"{name} has no CPU kernel")
    operands, others = own_tests(name).example()
    expected = results(name, operands, others)
    assert OPS[name].implementation("cpu", torch.float64).kind == "kernel"
    monkeypatch.delitem(OPS[name].kernels, "cpu")
    assert OPS[name].implementation("cpu", torch.float64).kind == OPS[name].fallback_kind
    for i, pair in enumerate(zip(expected, results(name, operands, others), strict=True)):
        assert_close(f"result {i}", *pair, 1e-12, scale=1.0)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_half_precision_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    operands, others = own_tests(name).example()
    rounded = {n: x.detach().to(dtype).double().requires_grad_() for n, x in operands.items()}
    expected, got = results(name, rounded, others), results(name, operands, others, dtype)
    assert got[0].dtype == (torch.float32 if name in FLOAT32_FIRST else dtype)
    for i, pair in enumerate(zip(expected, got, strict=True)):
        assert_close(f"result {i}", *pair, 4e-2 if dtype == torch.bfloat16 else 5e-3, scale=1.0)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_compiles_into_one_graph(name: str) -> None:
    operands, others = own_tests(name).example()

    def f(*values: Tensor) -> Any:
        return getattr(recgrela.ops, name)(**dict(zip(operands, values, strict=True)), **others)

    torch.compiler.reset()  # every op is a recompilation of f, whose number is limited
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")(*operands.values())
    expected = f(*operands.values())
    assert_close(name, *(x if isinstance(x, Tensor) else x[-1] for x in (expected, compiled)), 1e-12)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_exports(name: str) -> None:
    operands, others = own_tests(name).example()

    class Call(torch.nn.Module):
        def forward(self, *values: Tensor) -> Any:
            return getattr(recgrela.ops, name)(**dict(zip(operands, values, strict=True)), **others)

    values = tuple(x.detach() for x in operands.values())
    exported = torch.export.export(Call(), values, strict=False).module()(*values)
    expected = Call()(*values)
    assert_close(name, *(x if isinstance(x, Tensor) else x[-1] for x in (expected, exported)), 1e-12)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_recomputed_by_gradient_checkpointing(name: str) -> None:
    operands, others = own_tests(name).example()

    def f(*values: Tensor) -> Tensor:
        out = getattr(recgrela.ops, name)(**dict(zip(operands, values, strict=True)), **others)
        return sum(y.double().sum() for y in ([out] if isinstance(out, Tensor) else out))

    leaves = list(operands.values())
    losses = f(*leaves), checkpoint(f, *leaves, use_reentrant=False)
    gradients = [torch.autograd.grad(loss, leaves) for loss in losses]
    for operand, expected, got in zip(operands, *gradients, strict=True):
        assert torch.equal(expected, got), operand


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_without_gradients(name: str) -> None:
    operands, others = own_tests(name).example()
    call = partial(getattr(recgrela.ops, name), **others)
    expected = call(**operands)
    with torch.no_grad():
        outputs = [call(**operands)]
    outputs.append(call(**{n: x.detach() for n, x in operands.items()}))
    # The first output may be an operand, as it is.
    first, *rest = (x if isinstance(x, Tensor) else x[-1] for x in (expected, *outputs))
    assert first.requires_grad
    for y in rest:
        assert not y.requires_grad
        assert torch.equal(first, y)


@pytest.mark.parametrize(
    "op, device, dtype, sizes, expected",
    [
        (
            "gated_rela",
            "cuda",
            torch.float16,
            {"head_dim": 16, "kernel_size": 4},
            ("kernel", torch.float16),
        ),
        ("gated_rela", "cuda", torch.float16, {"head_dim": 12}, ("reference", torch.float32)),
        ("gated_rela", "cuda", torch.float32, {"kernel_size": 5}, ("reference", torch.float32)),
        ("gated_rela", "cuda", torch.float64, {}, ("reference", torch.float64)),
        ("gated_rela", "cpu", torch.float32, {"head_dim": 12, "kernel_size": 5}, ("kernel", torch.float32)),
        ("gated_rela", "cpu", torch.bfloat16, {}, ("kernel", torch.float32)),
        ("gated_rela", "mps", torch.float16, {}, ("reference", torch.float32)),
        ("gated_rela", "meta", torch.float64, {}, ("kernel", torch.float64)),
        ("causal_conv1d", "cuda", torch.float32, {"kernel_size": 5}, ("reference", torch.float32)),
        ("selective_scan", "cpu", torch.float32, {"num_states": 256}, ("kernel", torch.float32)),
        ("selective_scan", "cpu", torch.float32, {"num_states": 257}, ("reference", torch.float32)),
        ("mlp", "cuda", torch.bfloat16, {"widths": (256, 64)}, ("kernel", torch.bfloat16)),
        ("mlp", "cuda", torch.bfloat16, {"widths": (64, 40)}, ("composition", torch.bfloat16)),
        ("mlp", "cuda", torch.float32, {"widths": (128, 128)}, ("kernel", torch.float32)),
        ("mlp", "cuda", torch.float32, {"widths": (144, 128)}, ("composition", torch.float32)),
        ("linear", "cuda", torch.bfloat16, {"widths": (64, 192)}, ("kernel", torch.bfloat16)),
        ("linear", "cuda", torch.float32, {"widths": (64, 528)}, ("composition", torch.float32)),
        ("linear_cross_entropy", "cuda", torch.float16, {"widths": (48,)}, ("kernel", torch.float16)),
        ("linear_cross_entropy", "cuda", torch.float16, {"widths": (40,)}, ("composition", torch.float16)),
        ("dropout", "cpu", torch.float32, {}, ("kernel", torch.float32)),
    ],
)
def test_which_implementation_runs(
    op: str, device: str, dtype: torch.dtype, sizes: dict[str, int], expected: tuple[Any, torch.dtype]
) -> None:
    assert implementation_for(op, device, dtype, **sizes) == Implementation(*expected)


@pytest.fixture
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "WARNED", set())
    monkeypatch.setattr(support, "OPS", dict(OPS))
    kernel = Kernel((torch.float32,), widths=range(32, 257, 32))
    monkeypatch.setattr(support, "_registered", lambda *names: True)
    Op("narrow", {"cuda": kernel}, torch.square, "composition")
    Op("bare", {}, torch.square)


REFUSED = pytest.mark.parametrize(
    "op, dtype, sizes, refused",
    [
        ("gated_rela", torch.float32, {"head_dim": 12}, "heads of 12 channels, so the reference in plain"),
        ("gated_rela", torch.bfloat16, {"kernel_size": 5}, "kernel size 5, so the reference in plain"),
        ("gated_rela", torch.float64, {}, "float64, so the reference in plain"),
        ("selective_scan", torch.float16, {"num_states": 257}, "257 states, so the reference in plain"),
        ("linear_scan", torch.complex128, {}, "complex128, so the reference in plain"),
        ("mlp_block", torch.bfloat16, {"widths": (128,)}, "width 128, so add_norm and mlp run"),
        ("narrow", torch.float32, {"widths": (64, 48, 300)}, "width 48, so the composition in plain"),
        ("narrow", torch.bfloat16, {"widths": (33,)}, "width 33, so the composition in plain"),
    ],
)


@REFUSED
def test_a_fallback_on_cuda_is_said_once(
    nothing_said: None, op: str, dtype: torch.dtype, sizes: dict[str, Any], refused: str
) -> None:
    implementation = partial(support.OPS[op].implementation, "cuda", dtype, **sizes)
    with pytest.warns(UserWarning, match=f"^{op}: the CUDA kernel does not take {refused}") as caught:
        first, second = implementation(), implementation()
    assert first == second and first.kind != "kernel"
    assert len(caught) == 1


@REFUSED
@pytest.mark.filterwarnings("error")
def test_nothing_is_said_elsewhere(
    nothing_said: None,
    op: str,
    dtype: torch.dtype,
    sizes: dict[str, Any],
    refused: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    support.OPS[op].implementation("cpu", dtype, **sizes)
    support.OPS["bare"].implementation("cuda", dtype)
    implementation_for(op, "cuda", dtype, **sizes)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    support.OPS[op].implementation("cuda", dtype, **sizes)


def test_an_op_with_a_reference_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "OPS", {})
    op = Op("square", {}, torch.square)
    for device_type, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        assert op.implementation(device_type, dtype) == ("reference", dtype)
    x = torch.randn(3).half()
    assert torch.equal(op.run(x, x), x.float().square().half())


def test_an_unknown_op() -> None:
    with pytest.raises(ValueError, match="'lru' is not an op; expected one of add_norm, causal_conv1d, "):
        implementation_for("lru", "cpu", torch.float32)


def test_has_kernels() -> None:
    assert has_kernels("cpu") and "cpu" not in MISSING
    assert not has_kernels("meta")
    assert has_kernels("cuda") == ("cuda" not in MISSING)


@pytest.mark.skipif(has_kernels("cuda"), reason="needs a build without CUDA kernels")
def test_missing_kernels_are_an_error_with_a_remedy() -> None:
    assert {"gated_rela", "gated_rela_backward", "causal_conv1d"} <= set(MISSING["cuda"])
    x, cu_seqlens = torch.randn(7, 4), torch.tensor([0, 7])
    on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(NotImplementedError, match=r"causal_conv1d: .* no cuda kernels; install it"):
        op = torch.ops.recgrela.causal_conv1d.default
        op.redispatch(on_cuda, x, torch.randn(4, 3), None, cu_seqlens, None, True, False)


def test_states_beyond_the_kernels_by_reference() -> None:
    u, delta = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    B, C = torch.randn(2, 5, 300, dtype=torch.float64).unbind()
    A = -torch.rand(3, 300, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, 2, 5])
    y = recgrela.ops.selective_scan(u, delta, A, B, C, cu_seqlens=cu_seqlens)
    two = [
        recgrela.ops.selective_scan(u, delta, A[:, s], B[:, s], C[:, s], cu_seqlens=cu_seqlens)
        for s in (slice(150), slice(150, 300))
    ]
    assert_close("y", two[0] + two[1], y, 1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        single = [x.float() for x in (u, delta, A, B, C)]
        assert_close("y", y, recgrela.ops.selective_scan(*single, cu_seqlens=cu_seqlens), 1e-5)


@pytest.mark.parametrize("offsets", [[1, 7], [0, 6], [0, 5, 4, 7]])
def test_references_refuse_bad_offsets(offsets: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OPS["causal_conv1d"].kernels, "cpu")
    with pytest.raises(RuntimeError, match="must start at 0, not decrease and end at 7"):
        recgrela.ops.causal_conv1d(torch.randn(7, 4), torch.randn(4, 3), None, torch.tensor(offsets))


# ---- plain_pytorch


class Called(TorchDispatchMode):
    """The operators of recgrela that run in a context."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "recgrela":
            self.ours.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_plain_pytorch_runs_compositions_alone(name: str) -> None:
    operands, others = own_tests(name).example()
    values = {n: x.detach() for n, x in operands.items()}
    op = getattr(recgrela.ops, name)
    expected = op(**values, **others)
    with plain_pytorch(), Called() as called:
        # The composition of linear_cross_entropy is an operator, because it stores gradients in the forward.
        if OPS[name].fallback_kind == "reference" or name == "linear_cross_entropy":
            with pytest.raises(NotImplementedError, match="has no composition in plain PyTorch"):
                op(**values, **others)
            return
        got = op(**values, **others)
    assert called.ours == set()
    assert_close(name, *(x if isinstance(x, Tensor) else x[-1] for x in (expected, got)), 1e-12)


def test_plain_pytorch_ends_and_holds_for_one_thread() -> None:
    kinds = []

    def ask() -> None:
        kinds.append(implementation_for("mlp", "cpu", torch.float32).kind)

    with plain_pytorch(), plain_pytorch():
        ask()
        other = threading.Thread(target=ask)
        other.start()
        other.join()
    ask()
    with pytest.raises(ValueError, match="stop"), plain_pytorch():
        raise ValueError("stop")
    ask()
    assert kinds == ["composition", "kernel", "kernel", "kernel"]

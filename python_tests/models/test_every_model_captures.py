"""CUDA graphs of every model: filled batches, and operations that a graph cannot hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.models.forms import BUILT, FORMS, MAX_LEN, N_ITEMS, make, packed
from python_tests.support.gpu import needs_gpu
from python_tests.support.project import ROOT
from python_tests.support.tensors import assert_close
from recgrela.data import Batch
from recgrela.data.filling import Filling
from recgrela.models import MODELS, SequenceModel, build
from recgrela.models.capture import capture_obstacle, filling_for, max_slots, small_batch
from recgrela.settings.train import Objective

LENGTHS = [*[12, 1, 7, 2] * 8, 3]  # 33 sequences, which dense forms fill up to 34
CASES = [(form, objective) for form, model in BUILT.items() for objective in model.trains_on]


def batch_of(objective: Objective, device: str = "cpu") -> Batch:
    items, cu_seqlens, longest = packed(LENGTHS)
    target = items.roll(1)[: len(LENGTHS) if objective == "last" else None]
    tensors = (x.to(device) for x in (items, cu_seqlens, target, torch.arange(len(LENGTHS))))
    items, cu_seqlens, target, users = tensors
    return Batch(objective, items, cu_seqlens, longest, target, users, np.cumsum([0, *LENGTHS]))


def loss_of(model: SequenceModel, filling: Filling, inputs: tuple[Tensor, ...]) -> Tensor:
    items, cu_seqlens, target, *lengths = inputs
    options = {"lengths": lengths[0]} if lengths else {}
    return model.loss_packed(items, cu_seqlens, target, filling.max_seqlen, filling.objective, **options)


def gradients(model: SequenceModel, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("form", "objective"), CASES)
def test_filling_changes_neither_loss_nor_gradients(form: str, objective: Objective) -> None:
    """Without dropout, whose random numbers depend on the number of rows."""
    model, batch = make(form), batch_of(objective)
    filling = filling_for(model, objective, MAX_LEN)
    inputs = filling(batch)
    items, cu_seqlens, target, *lengths = inputs
    assert target is batch.target
    if lengths:
        assert len(items) == MAX_LEN * len(LENGTHS) and lengths[0].tolist() == LENGTHS
    else:
        assert len(cu_seqlens) > 1 + len(LENGTHS)
    plain = model.loss_packed(batch.items, batch.cu_seqlens, batch.target, batch.max_seqlen, objective)
    expected = gradients(model, plain)
    filled = loss_of(model, filling, inputs)
    got = gradients(model, filled)
    assert filled.item() == pytest.approx(plain.item(), rel=1e-12)
    for name, gradient in expected.items():
        if gradient is None:
            assert got[name] is None, name
        else:
            assert_close(name, gradient, got[name], 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_filling_changes_no_scores(form: str) -> None:
    model, batch = make(form), batch_of("last")
    filling = filling_for(model, "last", MAX_LEN)
    items, cu_seqlens, _, *lengths = filling(batch)
    hidden = model.hidden_states(items, cu_seqlens, filling.max_seqlen, True, *lengths)
    plain = model.score_packed(batch.items, batch.cu_seqlens, batch.max_seqlen)
    assert_close("scores", plain, model.scores(hidden[: batch.size]), 1e-12)


@pytest.mark.parametrize(("form", "objective"), CASES)
def test_no_pass_waits_for_the_device(form: str, objective: Objective) -> None:
    """On the meta device, which runs the code of a GPU but for its kernels."""
    model = build(FORMS[form], N_ITEMS, MAX_LEN).to("meta").train()
    model.capture_obstacle = None  # found by hand, below
    filling = filling_for(model, objective, MAX_LEN)
    inputs = filling(small_batch(model, objective, MAX_LEN))

    def train() -> None:
        loss_of(model, filling, inputs).backward()

    items, cu_seqlens, _, *lengths = filling_for(model, "last", MAX_LEN)(small_batch(model, "last", 2))

    @torch.no_grad()
    def score() -> None:
        model.scores(model.hidden_states(items, cu_seqlens, MAX_LEN, True, *lengths))

    assert capture_obstacle(model, train) is None
    assert capture_obstacle(model.eval(), score) is None


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")
def test_no_pass_waits_for_a_gpu() -> None:
    """On tensors without data on a CUDA device, so the code that only a GPU runs, with autocast too."""
    command = [sys.executable, "-m", "python_tests.support.fake_gpu_passes"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    found = [json.loads(line) for line in result.stdout.splitlines()]
    capturable = [form for form, model in BUILT.items() if not model.capture_obstacle]
    assert {form for form, *_ in found} == {*capturable, "RecGRELA-no-kernel"}
    for form, objective, amp, operation in found:
        expected = "aten._local_scalar_dense.default" if form == "RecGRELA-no-kernel" else None
        assert operation == expected, (form, objective, amp)


def test_models_that_cannot_be_captured() -> None:
    assert [name for name, entry in MODELS.items() if entry.model.capture_obstacle] == ["SIGMA"]
    model = make("SIGMA")
    assert "cuDNN" in str(capture_obstacle(model, lambda: None))


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense"),
        (lambda x: x[x > 0], "aten.index"),
        (lambda x: x.nonzero(), "aten.nonzero"),
        (lambda x: torch.repeat_interleave(x.long().relu()), "aten.repeat_interleave"),
        (lambda x: torch.masked_select(x, x > 0), "aten.masked_select"),
        (lambda x: x.unique(), "aten._unique2"),
        (lambda x: "yes" if x.any() else "no", "aten._local_scalar_dense"),
    ],
)
def test_reads_by_the_host_are_found(operation: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("RecGRELA")
    encode = model.encode

    def reading(x: Tensor, sequences: Any) -> Tensor:
        operation(x[:, 0])
        return encode(x, sequences)

    monkeypatch.setattr(model, "encode", reading)
    filling = filling_for(model, "all", MAX_LEN)
    inputs = filling(batch_of("all"))
    found = capture_obstacle(model, lambda: loss_of(model, filling, inputs))
    assert f"this RecGRELA waits for the device ({name} in models/base.py, line" in str(found)


def test_copies_from_the_host_are_found() -> None:
    model = build(FORMS["RecGRELA"], N_ITEMS, MAX_LEN).to("meta")
    for copies in (
        lambda: torch.tensor([1, 2], device="meta"),
        lambda: torch.ones(2).to("meta"),
        lambda: torch.empty(2, device="meta").copy_(torch.ones(2)),
    ):
        assert capture_obstacle(model, copies) is not None
    scalar = torch.ones(3, device="meta")
    assert capture_obstacle(model, lambda: scalar * torch.ones(()) + 2) is None  # an argument of the kernel
    assert capture_obstacle(model, lambda: torch.ones(()).item()) is None  # on the host


def test_the_random_state_stays() -> None:
    model, state = make("RecGRELA"), torch.get_rng_state()
    assert capture_obstacle(model, lambda: torch.randn(3)) is None
    assert torch.equal(state, torch.get_rng_state())


def test_most_slots_of_a_batch() -> None:
    """A packed model takes a slot for each item, a dense one the longest length for each sequence."""
    causal, dense, attending = (BUILT[form] for form in ("RecGRELA", "SASRec", "RecGRELA-attend"))
    assert max_slots(causal, "last", 10, 5) == 50 == max_slots(dense, "last", 10, 5)
    assert max_slots(attending, "last", 10, 5) == 10 * MAX_LEN
    assert max_slots(causal, "all", 10, 4) == 10 and max_slots(causal, "all", 3, 4) == 3
    assert max_slots(dense, "all", 10, 4) == 7 * 4


@needs_gpu
@pytest.mark.parametrize(("form", "objective"), CASES)
def test_a_step_can_be_captured(form: str, objective: Objective) -> None:
    """A replay has the bits of a plain pass, its random numbers too."""
    if BUILT[form].capture_obstacle:
        pytest.skip(str(BUILT[form].capture_obstacle))
    torch.manual_seed(1)
    model = build(FORMS[form], N_ITEMS, MAX_LEN).cuda().train()
    filling, batch = filling_for(model, objective, MAX_LEN), batch_of(objective, "cuda")
    inputs = filling(batch)

    def step() -> Tensor:
        gradient = gradients(model, loss_of(model, filling, inputs)).values()
        return torch.cat([g.flatten() for g in gradient if g is not None])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # which makes the inputs
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    torch.manual_seed(2)
    expected = [step().clone() for _ in range(2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    torch.manual_seed(2)
    for plain in expected:
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(plain, got)
    assert got.isfinite().all() and (expected[0] != expected[1]).any()

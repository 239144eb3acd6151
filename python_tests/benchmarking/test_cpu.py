"""The benchmarks on a CPU, at small sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import timing
from benchmarks.cpu import attention_length, host_time, length, ops, retrieval, serving, train_step
from python_tests.cases import CASES
from recgrela.inference.captured import CapturedStep
from recgrela.models import RecGRELAConfig, build
from recgrela.ops import OPS
from recgrela.retrieval import ItemIndex


@pytest.fixture(autouse=True)
def fake_memory(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Replaces the measurement of memory, which takes three processes for each variant."""
    calls: list[tuple] = []

    def peak_memory(target: Any, warm_up: tuple, args: tuple) -> int:
        calls.append(warm_up)
        return 1_000_000 * (1 + len(args[0]))

    monkeypatch.setattr(timing, "peak_memory", peak_memory)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return calls


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)
def test_every_op_is_measured_beside_its_forms(op: Any) -> None:
    sizes = list(op.cpu_sizes())
    assert sizes
    for case in sizes:
        record = ops.measure(replace(case, lengths=(9, 9)), threads=1, rounds=1)
        assert list(record["milliseconds"]) == [timing.OURS, *case.forms]
        assert record["max_relative_error"] < ops.MAX_ERROR


def test_no_speed_is_reported_for_wrong_results() -> None:
    right, wrong = {"y": torch.ones(3)}, {"y": torch.tensor([1.0, 1.0, 1.1])}
    assert timing.check_results("op", right, right, 1e-3) == 0
    with pytest.raises(SystemExit, match=r"op: y off by .* no speed is reported"):
        timing.check_results("op", right, wrong, 1e-3)


def test_a_comparison_names_the_faster_variant(
    fake_memory: list[tuple], capsys: pytest.CaptureFixture[str]
) -> None:
    def make(variant: str, size: int) -> Any:
        work = {timing.OURS: 1, "slow": 200_000, "slower": 2_000_000}[variant]
        return lambda: sum(range(work * size))

    variants = (timing.OURS, "slow", "slower")
    found = timing.compare("title", make, variants, (2,), (1,), rounds=2)
    assert "times faster than slow," in capsys.readouterr().out
    assert found["times_faster_than_the_faster_eager"] > 1
    assert found["share_of_its_peak_memory"] == pytest.approx(9 / 5)
    assert fake_memory == [(name, 1) for name in variants]


@pytest.mark.parametrize("case", train_step.CASES)
def test_a_training_step_agrees_with_the_peer(case: str) -> None:
    data = train_step.load(train_step.DataConfig(synthetic_users=30, synthetic_items=40, synthetic_events=9))
    forms = train_step.CASES[case][1]
    if case != "last, mask":
        assert all(train_step.agree(case, form, data, 20) < 1e-3 for form in forms)


def test_steps_of_any_length_run() -> None:
    length.make(5, 20, 1, "cpu")()
    for form in attention_length.FORMS:
        attention_length.make(form, 6, 12, 1)()


def test_states_are_measured_beside_a_pass_over_the_history() -> None:
    model = build(RecGRELAConfig(hidden_size=16, num_heads=2, num_layers=1), 60, 200).eval()
    with torch.inference_mode():
        index = ItemIndex(model.item_embedding.weight.detach(), precision="int8")
        found = serving.measure(model, CapturedStep(model), index, 12, rounds=2)
        assert list(found["milliseconds"]) == ["state", "recompute", "state alone", "step alone"]
        wrong = ItemIndex(-model.item_embedding.weight.detach(), precision="int8")
        with pytest.raises(SystemExit, match="the search found other items"):
            serving.measure(model, CapturedStep(model), wrong, 12, rounds=2)


def test_searches_are_measured_beside_plain_pytorch() -> None:
    for record in retrieval.measure(500, 8, 3, (1, 2), rounds=1):
        assert (
            list(record["milliseconds"])
            == list(record["megabytes"])
            == [retrieval.PYTORCH, "float32", "int8"]
        )
        assert min(record["times_faster"].values()) > 0
    right = (torch.tensor([[1]]), torch.tensor([[2.0]]))
    with pytest.raises(SystemExit, match="other items or scores than the definition"):
        retrieval.check("int8", (right[0], right[1] + 1e-6), right)


@pytest.mark.parametrize("name", [host_time.LINEAR, *(name for name, op in OPS.items() if not op.in_place)])
def test_the_time_on_the_host_of_every_op(name: str) -> None:
    seconds = timing.medians(host_time.variants(name), rounds=2, warm_up=1)
    assert list(seconds) == [f"{name} forward", name]
    assert min(seconds.values()) > 0

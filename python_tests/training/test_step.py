from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
import torch
from torch import Tensor

from python_tests.support.gpu import needs_gpu
from python_tests.support.graphs import FakeGraph, fake_graphs
from python_tests.support.tensors import assert_close
from recgrela.data import Batch, DataConfig, TrainBatches, load
from recgrela.data.filling import Filling
from recgrela.models import CONFIGS, RecGRELAConfig, build
from recgrela.models.capture import filling_for
from recgrela.settings.run import read_run
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import ConfigError, RunError
from recgrela.system.graphs import Capture, CudaGraphs, GraphedFunction
from recgrela.training.graphs import step_obstacle
from recgrela.training.losses import FullSoftmax, make_loss
from recgrela.training.session import Session, open_session
from recgrela.training.step import GraphedStep, TrainStep

DATA = DataConfig(synthetic_users=60, synthetic_items=40, synthetic_events=20, max_len=30)
CONFIG = TrainConfig(batch_size=100)
LAST = TrainConfig(objective="last", batch_size=40)
Take = Callable[[Batch, float], None]


def make_step(
    config: TrainConfig = CONFIG,
    device: str = "cpu",
    max_tokens: int = 1 << 20,
    rates: float = 0.0,
    **model: Any,
) -> tuple[TrainStep, list[Batch]]:
    """A step of a fresh small model, and the batches of an epoch."""
    torch.manual_seed(1)
    data = load(DATA)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_heads": 2, "num_layers": 2}
    model_config = RecGRELAConfig(**sizes, dropout=rates, drop_path=rates, **model)
    built = build(model_config, data.n_items, DATA.max_len).to(device)
    batches = TrainBatches(data, config.objective, DATA.max_len, config.batch_size, 0, device)
    lr = torch.tensor(config.lr, device=device) if device == "cuda" else config.lr
    optimizer = torch.optim.Adam(built.parameters(), lr=lr, fused=True, capturable=device == "cuda")
    step = TrainStep(built, optimizer, FullSoftmax(), config, max_tokens)
    return step, list(batches.epoch(0))


def filling_of(step: TrainStep, batches: list[Batch]) -> Filling:
    return filling_for(step.model, step.config.objective, max(batch.max_seqlen for batch in batches))


def graphed(step: TrainStep, batches: list[Batch], capture: Capture) -> GraphedStep:
    return GraphedStep(step, filling_of(step, batches), capture)


def weights_after(
    step: TrainStep, batches: list[Batch], lr: float = 1e-2, take: Take | None = None
) -> list[Tensor]:
    """The weights after steps that `take` takes, by default the step itself."""
    for batch in batches:
        (take or step)(batch, lr)
    return [p.detach().clone() for p in step.model.parameters()]


def test_parts_give_the_same_step_as_the_whole_batch() -> None:
    whole, batches = make_step()
    parts, _ = make_step(max_tokens=37)
    for a, b in zip(weights_after(whole, batches[:2]), weights_after(parts, batches[:2]), strict=True):
        assert_close("weights", a, b, 1e-3)  # Adam's first steps enlarge the rounding of small gradients
    assert whole.loss_sum.item() == pytest.approx(parts.loss_sum.item(), rel=1e-5)


def test_the_loss_is_the_sum_of_the_batch_means() -> None:
    step, batches = make_step()
    expected = 0.0
    for batch in batches[:3]:
        with torch.no_grad():
            expected += step.model.loss_packed(
                batch.items, batch.cu_seqlens, batch.target, batch.max_seqlen, "all"
            ).item()
        step(batch, 1e-2)
    assert step.loss_sum.item() == pytest.approx(expected, rel=1e-6)


def test_a_learning_rate_of_zero_leaves_the_weights() -> None:
    step, batches = make_step()
    before = [p.detach().clone() for p in step.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, weights_after(step, batches[:2], 0.0), strict=True))


def test_compiled_equals_eager() -> None:
    eager, batches = make_step()
    compiled, _ = make_step(replace(CONFIG, compile=True))
    for a, b in zip(weights_after(eager, batches[:3]), weights_after(compiled, batches[:3]), strict=True):
        assert_close("weights", a, b, 1e-2)
    assert eager.loss_sum.item() == pytest.approx(compiled.loss_sum.item(), rel=1e-4)


FORMS: list[tuple[TrainConfig, dict[str, str]]] = [
    (CONFIG, {"mode": "causal"}),
    (LAST, {"mode": "causal"}),
    (LAST, {"mode": "bidirectional"}),
    (LAST, {"mode": "bidirectional", "padding": "attend"}),
]
IDS = ["all", "last, causal", "last, mask", "last, attend"]


@pytest.mark.parametrize(("config", "model"), FORMS, ids=IDS)
def test_a_graphed_step_equals_a_plain_one(
    config: TrainConfig, model: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is fake and on the CPU; buffers, filled batches and fallbacks are real."""
    monkeypatch.setattr("recgrela.data.filling.MIN_MULTIPLE", 4)
    plain, batches = make_step(config, **model)
    step, _ = make_step(config, **model)
    graph = FakeGraph()
    take = graphed(step, batches, graph)
    assert batches[-1].target.numel() < config.batch_size
    filling = filling_of(step, batches)
    passes = [*batches, *batches, *batches]
    sizes = [tuple(x.shape for x in filling(batch)) for batch in passes]
    if model.get("padding") == "attend":
        assert len(set(sizes)) == 2  # with the last, smaller batch
    else:
        assert len(set(sizes)) > 2
    replayed = [i for i, size in enumerate(sizes) if i >= GraphedFunction.WARM_UP and size in sizes[:i]]
    for a, b in zip(weights_after(plain, passes), weights_after(step, passes, take=take), strict=True):
        assert_close("weights", a, b, 1e-3)
    assert graph.replays == len(replayed) > 0
    assert graph.captures == len({sizes[i] for i in replayed})
    assert step.loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-5)


@pytest.mark.parametrize(("config", "model"), FORMS, ids=IDS)
def test_a_step_has_the_same_bits_captured_or_not(config: TrainConfig, model: dict[str, str]) -> None:
    """A resumed run captures later than an uninterrupted one."""
    results = []
    for max_graphs in (16, 0):
        step, batches = make_step(config, rates=0.1, **model)
        graph = FakeGraph()
        take = graphed(step, batches, graph)
        take._graphed.MAX_GRAPHS = max_graphs
        torch.manual_seed(3)
        results.append(weights_after(step, [*batches, *batches], take=take))
        assert (graph.replays > 0) == (max_graphs > 0)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_step_leaves_no_gradients() -> None:
    """In a CUDA graph's memory, they would be overwritten by the next replay."""
    step, batches = make_step()
    weights_after(step, batches[:1])
    assert all(p.grad is None for p in step.model.parameters())


def test_few_graphs() -> None:
    """Shapes beyond the limit run without; results are copied out of a graph's memory."""
    graph = FakeGraph()
    function = GraphedFunction(lambda x, y: x + y, torch.device("cpu"), graph)
    function.MAX_GRAPHS = 2
    for round_ in range(4):
        for n in range(1, 5):
            result = function(torch.full((n,), round_), torch.arange(n))
            assert result is not None and result.tolist() == [round_ + i for i in range(n)]
    assert (graph.captures, graph.replays) == (2, 6)
    first, second = (function(torch.zeros(2), torch.full((2,), x)) for x in (1.0, 2.0))
    assert first is not None and second is not None and first.tolist() == [1.0] * 2 != second.tolist()


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_failed_capture_says_what_to_do(ends_well: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's context raises an error of its own at the end of a failed capture."""

    @contextmanager
    def graph(*args: Any, **kwargs: Any) -> Iterator[None]:
        try:
            yield
        finally:
            if not ends_well:
                raise RuntimeError("capture was invalidated")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock)
    monkeypatch.setattr(torch.cuda, "Stream", Mock)
    monkeypatch.setattr(torch.cuda, "graph", graph)

    def body() -> None:
        raise torch.OutOfMemoryError("tried to allocate 1 GiB\nand more")

    message = "no CUDA graph can be captured: tried to allocate 1 GiB; use --train.cuda_graphs false"
    with pytest.raises(RunError, match=message):
        CudaGraphs(torch.device("cuda"))(body)


def test_graphs_are_captured_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's current device may be another one; its graph would be empty, and replay old results."""
    graph = MagicMock()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream on {device}")
    monkeypatch.setattr(torch.cuda, "graph", graph)
    CudaGraphs(torch.device("cuda", 1))(lambda: None)
    assert graph.call_args.kwargs["stream"] == "stream on cuda:1"


@needs_gpu
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(("config", "model"), FORMS, ids=IDS)
def test_cuda_graphs_equal_plain_steps(config: TrainConfig, model: dict[str, str], amp: bool) -> None:
    """Bit for bit, with dropout and with evaluations of longer histories in between."""
    longer = torch.randint(1, 40, (100,), device="cuda")
    results, losses = [], []
    for max_graphs in (16, 0):
        step, batches = make_step(replace(config, amp=amp), "cuda", rates=0.1, **model)
        take = graphed(step, batches, CudaGraphs(step.device))
        take._graphed.MAX_GRAPHS = max_graphs
        torch.manual_seed(3)
        for _ in range(6):
            results.append(weights_after(step, batches, 1e-3, take))
            if model.get("padding") != "attend":  # an evaluation must not replace the rotary table
                with torch.no_grad():
                    step.model.score_packed(longer, torch.tensor([0, 100], device="cuda"), 100)
        losses.append(step.loss_sum.item())
        assert len(take._graphed._graphs) > 0 or max_graphs == 0
    for captured, plain in zip(results[:6], results[6:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(captured, plain, strict=True))
    assert losses[0] == losses[1]


@needs_gpu
def test_compiled_steps_are_captured() -> None:
    plain, batches = make_step(replace(CONFIG, compile=True), "cuda")
    step, _ = make_step(replace(CONFIG, compile=True), "cuda")
    take = graphed(step, batches, CudaGraphs(step.device))
    passes = [*batches, *batches]
    for a, b in zip(weights_after(plain, passes), weights_after(step, passes, take=take), strict=True):
        assert_close("weights", a.cpu(), b.cpu(), 5e-2)
    assert len(take._graphed._graphs) > 0


@needs_gpu
@pytest.mark.parametrize("name", ["softmax", "sampled_softmax", "gbce"])
def test_each_replay_draws_other_random_numbers(name: str) -> None:
    """Dropout and negatives differ between replays: the loss of one batch changes."""
    data = load(DATA).to("cuda")
    step, batches = make_step(replace(CONFIG, batch_size=200), "cuda", rates=0.2)
    step.loss = make_loss(name, 0.0, 8, 0.5, data)
    take = graphed(step, batches, CudaGraphs(step.device))
    losses = []
    for _ in range(8):
        before = step.loss_sum.item()
        take(batches[0], 0.0)  # keeps the weights
        losses.append(step.loss_sum.item() - before)
    assert len(set(losses[4:])) == 4
    assert max(losses) < 2 * min(losses)


def test_requirements_of_cuda_graphs() -> None:
    with pytest.raises(ConfigError, match="cuda_graphs: true needs a GPU, but this run uses the CPU"):
        open_session(read_run(["--train.cuda_graphs=true", "--train.device=cpu"], CONFIGS))
    for value, device, wanted in (("auto", "cuda", True), ("auto", "cpu", False), ("false", "cuda", False)):
        assert TrainConfig(cuda_graphs=value).wants_graphs(device) is wanted


@pytest.mark.parametrize("name", ["softmax", "sampled_softmax", "gbce"])
@pytest.mark.parametrize(("config", "model"), FORMS, ids=IDS)
def test_steps_can_be_captured(config: TrainConfig, model: dict[str, str], name: str) -> None:
    """With each loss, on the meta device, which runs the code of a GPU but for its kernels."""
    step, batches = make_step(config, **model)
    step.loss = make_loss(name, 0.0, 8, 0.5, load(DATA)).to("meta")
    filling = filling_of(step, batches)
    step.model.to("meta")
    step.loss_sum, step.unit_gradient = step.loss_sum.to("meta"), step.unit_gradient.to("meta")
    assert step_obstacle(step, filling) is None
    step.max_tokens = 99
    assert "train.max_tokens 99 cuts batches of up to" in str(step_obstacle(step, filling))


def test_looking_for_obstacles_changes_nothing() -> None:
    step, batches = make_step(rates=0.1)
    before, state = [p.clone() for p in step.model.parameters()], torch.get_rng_state()
    found = step_obstacle(step, filling_of(step, batches))
    assert found is None or "linear_cross_entropy" in found  # its gradient reads a number on a CPU
    assert torch.equal(state, torch.get_rng_state()) and step.loss_sum.item() == 0
    after = list(step.model.parameters())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


def opened_session(monkeypatch: pytest.MonkeyPatch, obstacle: str | None, *more: str) -> Session:
    """Opens a session on the CPU as if it were a GPU, with fake graphs."""
    fake_graphs(monkeypatch, obstacle)
    small = ["--data.synthetic_users=30", "--model.num_layers=1", "--model.hidden_size=16"]
    return open_session(read_run([*small, "--train.device=cpu", *more], CONFIGS))


def test_a_run_without_graphs_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "its GRU runs in cuDNN"
    opened = opened_session(monkeypatch, why)
    assert opened.take_step is opened.step
    assert opened.notes == [f"note: steps run without CUDA graphs: {why}"]
    with pytest.raises(
        ConfigError, match="cuda_graphs: true is not possible: its GRU runs in cuDNN; or use auto"
    ):
        opened_session(monkeypatch, why, "--train.cuda_graphs=true")
    for more in ("auto", "true"):
        opened = opened_session(monkeypatch, None, f"--train.cuda_graphs={more}")
        assert isinstance(opened.take_step, GraphedStep) and not opened.notes
    opened = opened_session(monkeypatch, None, "--train.max_tokens=100")
    assert isinstance(opened.take_step, GraphedStep) and len(opened.notes) == 1
    assert "note: evaluation runs without CUDA graphs: train.max_tokens 100 cuts" in opened.notes[0]
    opened = opened_session(monkeypatch, None, "--train.cuda_graphs=false")
    assert opened.take_step is opened.step and not opened.notes


def test_histories_beyond_a_models_positions_are_refused() -> None:
    for more in (["--model.position=learned"], ["--preset=paper"]):
        with pytest.raises(ConfigError, match=r"data\.eval_max_len: 300 is above data\.max_len 200"):
            open_session(read_run([*more, "--data.eval_max_len=300"], CONFIGS))
    assert open_session(read_run(["--data.eval_max_len=300"], CONFIGS)).config.data.history_len == 300

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close
from recgrela.data import Batch, DataConfig, TrainBatches, load
from recgrela.models import CONFIGS, RecGRELAConfig, build
from recgrela.settings.run import read_run
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import ConfigError
from recgrela.training.losses import FullSoftmax, make_loss
from recgrela.training.session import open_session
from recgrela.training.step import GraphedStep, TrainStep, learning_rate

DATA = DataConfig(synthetic_users=60, synthetic_items=40, synthetic_events=20, max_len=30)
CONFIG = TrainConfig(batch_size=100)


def make_step(
    config: TrainConfig = CONFIG,
    device: str = "cpu",
    graphed: bool = False,
    max_tokens: int = 1 << 20,
    rates: float = 0.0,
    **how: Callable,
) -> tuple[TrainStep, list[Batch]]:
    """A step of a fresh small model, and the batches of an epoch."""
    torch.manual_seed(1)
    data = load(DATA)
    model_config = RecGRELAConfig(
        hidden_size=16, num_heads=2, num_layers=2, dropout=rates, drop_path=rates, mode="causal"
    )
    model = build(model_config, data.n_items, DATA.max_len).to(device)
    batches = TrainBatches(data, config.objective, DATA.max_len, config.batch_size, 0, device)
    if not graphed:
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        step = TrainStep(model, optimizer, FullSoftmax(), config, max_tokens)
    else:
        lr = torch.tensor(config.lr, device=device) if device == "cuda" else config.lr
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True, capturable=device == "cuda")
        step = GraphedStep(model, optimizer, FullSoftmax(), config, DATA.max_len, **how)
    return step, list(batches.epoch(0))


def weights_after(step: TrainStep, batches: list[Batch], lr: float = 1e-2) -> list[Tensor]:
    for batch in batches:
        step(batch, lr)
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


class FakeGraph:
    """Calls the body at each replay; the capture runs nothing, as with a CUDA graph."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            body()

        return replay


def test_a_graphed_step_equals_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is fake and on the CPU; buffers, padding of the batch and fallbacks are real."""
    monkeypatch.setattr(GraphedStep, "BATCH_MULTIPLE", 4)
    plain, batches = make_step()
    graph = FakeGraph()
    graphed, _ = make_step(graphed=True, capture=graph)
    assert [batch.num_tokens for batch in batches[:-1]] == [100] * (len(batches) - 1)
    assert batches[-1].num_tokens < 100
    sizes = [-(-batch.size // 4) for batch in batches]
    assert len(set(sizes[:-1])) > 1
    passes = [*batches, *batches]
    for a, b in zip(weights_after(plain, passes), weights_after(graphed, passes), strict=True):
        assert_close("weights", a, b, 1e-4)
    known = [i for i, size in enumerate(2 * sizes) if i >= GraphedStep.WARM_UP and size in (2 * sizes)[:i]]
    replayed = [i for i in known if passes[i].num_tokens == 100]
    assert graph.replays == len(replayed) > 0
    assert graph.captures == len({(2 * sizes)[i] for i in replayed})


@needs_gpu
@pytest.mark.parametrize("multiple", [64, 4])
def test_cuda_graphs_equal_plain_steps(multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation of longer histories in between must not replace the rotary table."""
    monkeypatch.setattr(GraphedStep, "BATCH_MULTIPLE", multiple)
    config = replace(CONFIG, batch_size=200)
    plain, batches = make_step(config, "cuda")
    graphed, _ = make_step(config, "cuda", graphed=True)
    longer = torch.randint(1, 40, (100,), device="cuda")
    for _ in range(6):
        for step in (plain, graphed):
            weights_after(step, batches, 1e-3)
            with torch.no_grad():
                step.model.score_packed(longer, torch.tensor([0, 100], device="cuda"), 100)
    for a, b in zip(plain.model.parameters(), graphed.model.parameters(), strict=True):
        assert_close("weights", a.cpu(), b.cpu(), 5e-2)
    assert plain.loss_sum.item() == pytest.approx(graphed.loss_sum.item(), rel=1e-3)


@needs_gpu
@pytest.mark.parametrize("name", ["softmax", "sampled_softmax", "gbce"])
def test_each_replay_draws_other_random_numbers(name: str) -> None:
    """Dropout and negatives differ between replays: the loss of one batch changes."""
    data = load(DATA).to("cuda")
    step, batches = make_step(replace(CONFIG, batch_size=200), "cuda", graphed=True, rates=0.2)
    step.loss = make_loss(name, 0.0, 8, 0.5, data)
    losses = []
    for _ in range(8):
        before = step.loss_sum.item()
        step(batches[0], 0.0)  # keeps the weights
        losses.append(step.loss_sum.item() - before)
    assert len(set(losses[4:])) == 4
    assert max(losses) < 2 * min(losses)


def test_learning_rates() -> None:
    def rates(**settings: object) -> list[float]:
        config = TrainConfig(lr=1.0, epochs=3, **settings)
        places = itertools.product(range(3), range(4))
        return [learning_rate(config, epoch, step, 4, 4 * epoch + step) for epoch, step in places]

    assert rates() == [1.0] * 12
    assert rates(lr_decay="linear") == pytest.approx([1 - i / 12 for i in range(12)])
    cosine = rates(lr_decay="cosine")
    assert cosine[0] == 1 and cosine[6] == pytest.approx(0.5) and 0 < cosine[11] < 0.02
    assert sorted(cosine, reverse=True) == cosine
    assert rates(warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 9)
    assert rates(warmup_steps=1, lr_decay="linear")[0] == pytest.approx(0.5)


def test_requirements_of_cuda_graphs() -> None:
    with pytest.raises(ConfigError, match="cuda_graphs: true needs a GPU, but this run uses the CPU"):
        open_session(read_run(["--train.cuda_graphs=true", "--train.device=cpu"], CONFIGS))
    with pytest.raises(ConfigError, match=r"requires train\.objective all"):
        TrainConfig(objective="last", cuda_graphs=True)
    with pytest.raises(ConfigError, match=r"train\.max_tokens 10 is below train\.batch_size 6400"):
        TrainConfig(cuda_graphs=True, max_tokens=10)


def test_histories_beyond_a_models_positions_are_refused() -> None:
    for more in (["--model.position=learned"], ["--preset=paper"]):
        with pytest.raises(ConfigError, match=r"data\.eval_max_len: 300 is above data\.max_len 200"):
            open_session(read_run([*more, "--data.eval_max_len=300"], CONFIGS))
    assert open_session(read_run(["--data.eval_max_len=300"], CONFIGS)).config.data.history_len == 300

"""CUDA graphs that run on any device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from recgrela.evaluation import ranking
from recgrela.settings.train import TrainConfig
from recgrela.training import session


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


def fake_graphs(monkeypatch: pytest.MonkeyPatch, obstacle: str | None = None) -> list[FakeGraph]:
    """Makes sessions on the CPU use graphs as on a GPU, where nothing but `obstacle` prevents steps from it.

    Returns:
        The graphs of the sessions that are opened later.
    """
    graphs: list[FakeGraph] = []
    adam = torch.optim.Adam

    def make(_: torch.device) -> FakeGraph:
        graphs.append(FakeGraph())
        return graphs[-1]

    monkeypatch.setattr(TrainConfig, "wants_graphs", lambda config, _: config.cuda_graphs != "false")
    monkeypatch.setattr(session, "CudaGraphs", make)
    monkeypatch.setattr(session, "step_obstacle", lambda *_: obstacle)
    monkeypatch.setattr(ranking, "capture_obstacle", lambda *_: None)
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, **_: adam(p, float(lr), fused=True))
    return graphs

"""The training steps that are measured on a GPU, and counted without one: 4 blocks, D 64, 4 heads."""

from __future__ import annotations

from dataclasses import dataclass

from recgrela.data import DataConfig
from recgrela.models import RecGRELAConfig
from recgrela.settings.run import RunConfig
from recgrela.settings.train import Objective, TrainConfig, UseGraphs

MAX_LEN = 200
# The users, items and events of a set as large as MovieLens-1M.
DATA = DataConfig(max_len=MAX_LEN, synthetic_users=6040, synthetic_items=3416, synthetic_events=165)


@dataclass(frozen=True)
class Setting:
    """A training step of one size.

    Attributes:
        name: name in reports.
        model: settings of the model.
        objective: "last" or "all".
        batch_size: targets of a step.
        amp: whether rows are bfloat16.
    """

    name: str
    model: RecGRELAConfig
    objective: Objective
    batch_size: int
    amp: bool

    def run_config(self, device: str, cuda_graphs: UseGraphs = "auto", data: DataConfig = DATA) -> RunConfig:
        """The settings of a run that takes such steps."""
        train = TrainConfig(
            objective=self.objective,
            batch_size=self.batch_size,
            amp=self.amp,
            device=device,
            cuda_graphs=cuda_graphs,
            tensorboard="off",
        )
        return RunConfig(self.model, data, train)


PUBLISHED = RecGRELAConfig(mode="bidirectional", padding="attend")
CAUSAL = RecGRELAConfig(mode="causal")
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("last bf16", PUBLISHED, "last", 2048, True),
        Setting("all 65,536 bf16", CAUSAL, "all", 65536, True),
        Setting("all 3,200 fp32", CAUSAL, "all", 3200, False),
        Setting("last fp32", PUBLISHED, "last", 2048, False),
        Setting("all 3,200 bf16", CAUSAL, "all", 3200, True),
    )
}

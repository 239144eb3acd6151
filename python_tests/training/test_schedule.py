"""Learning rates, and schedules of runs that are extended to more epochs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recgrela.settings.train import TrainConfig
from recgrela.system.errors import ConfigError, RunError
from recgrela.training.schedule import (
    Place,
    Schedule,
    describe_schedule,
    extension,
    learning_rate,
    recorded_schedules,
)

PATH = Path("protocol.json")


def rates(config: TrainConfig, schedules: list[Schedule], epochs: int) -> list[float]:
    """The learning rate of each step of epochs of four steps."""
    places = [Place(epoch, step, 4, 4 * epoch + step) for epoch in range(epochs) for step in range(4)]
    return [learning_rate(config, schedules, place) for place in places]


def first_rates(**settings: object) -> list[float]:
    return rates(TrainConfig(lr=1.0, epochs=3, **settings), [Schedule(3)], 3)


def test_learning_rates() -> None:
    assert first_rates() == [1.0] * 12
    assert first_rates(lr_decay="linear") == pytest.approx([1 - i / 12 for i in range(12)])
    cosine = first_rates(lr_decay="cosine")
    assert cosine[0] == 1 and cosine[6] == pytest.approx(0.5) and 0 < cosine[11] < 0.02
    assert sorted(cosine, reverse=True) == cosine
    assert first_rates(warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 9)
    assert first_rates(warmup_steps=1, lr_decay="linear")[0] == pytest.approx(0.5)


def test_a_finished_run_rises_from_zero_and_decays_again() -> None:
    config = TrainConfig(lr=1.0, epochs=4, warmup_steps=1, lr_decay="linear")
    added = extension(config, [Schedule(2)], Place(2, 0, 4, 8))
    assert added == Schedule(epochs=4, step=8, epoch=2.0, lr=0.0)
    first = rates(TrainConfig(lr=1.0, epochs=2, warmup_steps=1, lr_decay="linear"), [Schedule(2)], 2)
    assert rates(config, [Schedule(2), added], 4) == first * 2
    assert describe_schedule(config, added) == (
        "the learning rate rises from 0 to 1 over 1 steps and decays (linear) to zero at the end of epoch 4"
    )


def test_an_unfinished_run_rises_from_its_current_learning_rate() -> None:
    config = TrainConfig(lr=1.0, epochs=3, warmup_steps=3, lr_decay="linear")
    before = rates(config, [Schedule(2)], 2)
    added = extension(config, [Schedule(2)], Place(1, 2, 4, 6))
    assert added == Schedule(epochs=3, step=6, epoch=1.5, lr=before[6])
    after = rates(config, [Schedule(2), added], 3)
    assert after[:6] == before[:6]
    rise = [before[6] + (1 - before[6]) * part for part in (0.25, 0.5, 0.75, 1, 1, 1)]
    assert after[6:] == pytest.approx([rise[i] * (1 - i / 6) for i in range(6)])


def test_only_a_decaying_learning_rate_has_a_new_schedule() -> None:
    constant = TrainConfig(epochs=9, warmup_steps=3)
    assert extension(constant, [Schedule(2)], Place(2, 0, 4, 8)) is None
    assert rates(constant, [Schedule(2)], 9)[8:] == [constant.lr] * 28
    same = TrainConfig(epochs=2, lr_decay="cosine")
    assert extension(same, [Schedule(2)], Place(1, 0, 4, 4)) is None
    with pytest.raises(ConfigError, match=r"train.epochs: 1 is below the 2 epochs over which"):
        extension(TrainConfig(epochs=1, lr_decay="cosine"), [Schedule(2)], Place(1, 0, 4, 4))


def test_schedules_are_read_from_the_protocol() -> None:
    config = TrainConfig(epochs=5)
    added = Schedule(epochs=4, step=8, epoch=2.0, lr=0.25)
    resumed = [{"step": 3}, {"step": 8, "schedule": added.as_dict()}]
    content = {"settings": {"train.epochs": 2}, "resumed": resumed}
    assert recorded_schedules(content, PATH, config) == [Schedule(2), added]
    assert recorded_schedules({"settings": {}}, PATH, config) == [Schedule(5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "8"}, "a schedule has step '8'"),
        ({"lr": -1.0}, "a schedule has lr -1.0"),
        ({"lr": float("nan")}, "a schedule has lr nan"),
        ({"epochs": 2}, "a schedule ends before it begins"),
        ({"more": 1}, "a schedule is {"),
    ],
)
def test_a_damaged_schedule_is_named(change: dict[str, object], message: str) -> None:
    content = Schedule(epochs=4, step=8, epoch=2.0, lr=0.25).as_dict() | change
    with pytest.raises(RunError, match=f"protocol.json: damaged: {re.escape(message)}"):
        Schedule.from_dict(content, PATH)

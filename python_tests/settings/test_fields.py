"""The fields of settings, the validation of values, and the effects of `affects`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from recgrela.compare.options import OWN_SETTINGS
from recgrela.models import CONFIGS
from recgrela.settings import merge
from recgrela.settings.data import DataConfig
from recgrela.settings.fields import (
    LENGTH,
    NOTHING,
    PLACE,
    RESULTS,
    SPEED,
    Option,
    Settings,
    options_of,
    setting,
)
from recgrela.settings.run import RunConfig, read_run
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import ConfigError


@dataclass(frozen=True)
class Small(Settings):
    section: ClassVar[str] = "small"

    count: int = setting(3, "A count.", min=1, max=10)
    rate: float = setting(0.5, "A rate.", above=0, below=1)
    limit: int | None = setting(None, "A limit.", min=0)
    choice: Literal["left", "right"] = setting("left", "A side.")
    flag: bool = setting(False, "A flag.")
    name: str | None = setting(None, "A name.")


@pytest.mark.parametrize("kind", [DataConfig, TrainConfig, *CONFIGS.values()])
def test_every_field_has_metadata(kind: type[Any]) -> None:
    for item in fields(kind):
        assert item.metadata.get("help", "").endswith("."), item.name
        assert item.metadata["help"][0] not in " .", item.name
    options = options_of(kind)
    assert list(options) == [f"{kind.section}.{item.name}" for item in fields(kind)]
    for option in options.values():
        assert option.kind in (bool, int, float, str), option.key
        if option.kind is int:
            assert option.min is not None or "max_" in option.key, f"{option.key} has no lower limit"
        assert option.check(option.default) == option.default


def test_a_field_without_metadata_is_an_error() -> None:
    @dataclass(frozen=True)
    class Bare(Settings):
        section: ClassVar[str] = "bare"
        count: int = field(default=3)

    with pytest.raises(TypeError, match="help"):
        Bare()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "small.count: 0 is below 1"),
        ({"count": 11}, "small.count: 11 is above 10"),
        ({"count": 1.5}, "small.count: 1.5 is not a whole number"),
        ({"count": True}, "small.count: true is not a whole number"),
        ({"count": None}, "small.count: null is not a whole number"),
        ({"count": "3"}, "small.count: '3' is not a whole number"),
        ({"rate": 0}, "small.rate: 0 is not above 0"),
        ({"rate": 1.0}, "small.rate: 1.0 is not below 1"),
        ({"rate": float("nan")}, "small.rate: nan is not a finite number"),
        ({"rate": "0.5"}, "small.rate: '0.5' is not a number"),
        ({"limit": -1}, "small.limit: -1 is below 0"),
        ({"limit": 2**31}, "small.limit: 2147483648 is above 2147483647"),
        ({"limit": "x"}, "small.limit: 'x' is not a whole number or null"),
        ({"choice": "lft"}, "small.choice: 'lft' is not one of left, right; did you mean 'left'?"),
        ({"choice": ["x"]}, "small.choice: ['x'] is not one of left, right"),
        ({"flag": 1}, "small.flag: 1 is not true or false"),
        ({"name": 3}, "small.name: 3 is not text or null"),
    ],
)
def test_values_given_in_python_are_checked_and_not_converted(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Small(**change)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", "7", 7),
        ("count", "0x7", 7),
        ("rate", "1e-3", 1e-3),
        ("rate", "0.25", 0.25),
        ("limit", "null", None),
        ("limit", "~", None),
        ("choice", "right", "right"),
        ("flag", "yes", True),
        ("flag", "False", False),
        ("name", 123, "123"),
        ("name", True, "true"),
        ("name", None, None),
    ],
)
def test_words_and_plain_values_become_typed_ones(key: str, value: Any, expected: Any) -> None:
    typed = options_of(Small)[f"small.{key}"].read(value)
    assert (typed, type(typed)) == (expected, type(expected))


def test_a_number_too_large_for_a_float_is_an_error() -> None:
    with pytest.raises(ConfigError, match="is not a finite number"):
        Option("big", 1.0, "A number.", kind=float).read(10**400)


def keys(config: RunConfig, *effects: object) -> set[str]:
    return {key for key, option in config.options.items() if option.affects in effects}


def test_effects_of_the_settings() -> None:
    config = read_run([], CONFIGS)
    assert keys(config, NOTHING) == {
        "data.path",
        "data.valid_path",
        "data.test_path",
        "data.max_unpacked_gb",
        "train.tensorboard",
        "train.log_every",
        "train.save_minutes",
        "train.if_exists",
    }
    assert keys(config, SPEED) == {"train.device", "train.threads", "train.shard_items"}
    assert keys(config, PLACE) == {"train.output", "train.name"}
    assert keys(config, LENGTH) == {"train.epochs", "train.max_steps", "train.patience", "train.pieces"}
    assert keys(config, RESULTS, NOTHING, SPEED, PLACE, LENGTH) == set(config.flat())
    assert OWN_SETTINGS.keys() == keys(config, PLACE) | {"train.seed"}


def test_a_resumed_run_may_change_its_length_speed_and_output() -> None:
    config = read_run([], CONFIGS)
    assert config.resumable() == keys(config, NOTHING, SPEED, LENGTH)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  epochs: many", "train.epochs: 'many' is not a whole number"),
        ("  epochs: 0", "train.epochs: 0 is below 1"),
        ("  epoch: 3", "unknown key train.epoch; did you mean 'train.epochs'?"),
    ],
)
def test_a_mistake_in_a_preset_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setattr(merge, "PRESETS_FOLDER", tmp_path)
    (tmp_path / "causal.yaml").write_text(f"model: {{name: RecGRELA}}\ntrain:\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_run([], CONFIGS)
    assert str(caught.value) == f"{tmp_path / 'causal.yaml'}: {message}"


def test_the_help_shows_the_values_of_preset_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("model: {name: SASRec}\ntrain: {epochs: 7}\n")
    with pytest.raises(SystemExit):
        read_run(["--preset=paper", f"--config={tmp_path / 'a.yaml'}", "--help"], CONFIGS)
    text = " ".join(capsys.readouterr().out.split())
    assert "Maximum number of epochs. Default: 7." in text
    assert "Default: 2048." in text  # the preset's batch size
    assert "--model.attention_dropout" in text and "--model.mode" not in text
    assert all(name in text for name in CONFIGS)

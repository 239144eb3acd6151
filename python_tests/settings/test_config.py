from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from recgrela.models import CONFIGS, RecGRELAConfig
from recgrela.runs.protocol import changed_from_preset
from recgrela.settings.data import DataConfig, with_absolute_path
from recgrela.settings.merge import PRESETS, read_preset
from recgrela.settings.run import RunConfig, read_config, read_run
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import ConfigError


def parse(*argv: str) -> RunConfig:
    return read_run(argv, CONFIGS)


def test_the_default_is_the_causal_preset() -> None:
    config = parse()
    assert config == parse("--preset", "causal") == parse("--preset=causal")
    assert (config.preset, config.model.mode, config.model.padding) == ("causal", "causal", "mask")
    assert (config.train.objective, config.train.batch_size, config.train.lr) == ("all", 3200, 8e-3)
    assert config.data.order == "time"
    assert config.data.path == "synthetic"


def test_the_paper_preset_is_the_published_setting() -> None:
    config = parse("--preset", "paper")
    assert config.model == RecGRELAConfig(
        hidden_size=64,
        num_heads=4,
        num_layers=4,
        mode="bidirectional",
        padding="attend",
        dropout=0.1,
        drop_path=0.1,
    )
    assert config.data == DataConfig(order="recbole", max_len=200, min_user_events=5, min_item_events=5)
    assert config.train == TrainConfig(
        objective="last", batch_size=2048, lr=1e-3, epochs=300, patience=20, seed=2020
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_key_of_a_preset_is_used(name: str) -> None:
    config = parse("--preset", name).flat()
    for key, value in read_preset(name).values.items():
        assert config[key] == value, key


def test_precedence(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("train: {lr: 1e-2, epochs: 7, batch_size: 3}\n")  # YAML takes 1e-2 for text
    second.write_text("train:\n  epochs: 8\nmodel:\n  num_layers: 1\n")
    config = parse("--train.batch_size", "4", "--config", str(first), "--config", str(second))
    assert config.train.lr == 0.01  # file over preset
    assert config.train.epochs == 8  # later file over earlier
    assert config.train.batch_size == 4  # command line over files, in any position
    assert config.model.num_layers == 1
    assert config.train.objective == "all"  # preset
    assert config.train.seed == 2020  # default


def test_a_file_can_choose_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("preset: paper\ntrain: {batch_size: 5}\n")
    config = parse("--config", str(path))
    assert (config.preset, config.model.mode, config.train.batch_size) == ("paper", "bidirectional", 5)
    config = parse("--config", str(path), "--preset", "causal")
    assert (config.preset, config.model.mode, config.train.batch_size) == ("causal", "causal", 5)


def test_null_and_booleans(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {max_steps: 5, amp: true, name: null}\n")
    config = parse("--config", str(path))
    assert (config.train.max_steps, config.train.amp, config.train.name) == (5, True, None)
    config = parse("--config", str(path), "--train.max_steps", "null", "--train.amp", "false")
    assert (config.train.max_steps, config.train.amp) == (None, False)


def test_written_configuration_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = parse(
        "--preset", "paper", "--train.max_steps", "3", "--train.lr", "3e-05", "--train.name", "123"
    )
    path.write_text(config.to_yaml())
    assert read_config(path, CONFIGS) == config
    assert parse("--config", str(path)) == config
    assert yaml.safe_load(path.read_text())["train"]["name"] == "123"


# The config.yaml of a run with the preset paper, as the first version wrote it.
FIRST_CONFIG = """
preset: paper
model: {name: RecGRELA, hidden_size: 64, num_heads: 4, num_layers: 4, mode: bidirectional, padding: attend,
  dropout: 0.1, drop_path: 0.1, position: rotary, rotary_base: 10000.0, conv_width: 4, gate: true,
  gate_activation: silu, mlp_activation: gelu, mlp_ratio: 4, input_projection: true, value_projection: false,
  single_block_residual: false, eps: 1.0e-06}
data: {path: synthetic, format: auto, user_column: user_id, item_column: item_id, time_column: timestamp,
  min_user_events: 5, max_user_events: null, min_item_events: 5, max_item_events: null, order: recbole,
  max_len: 200, eval_max_len: null, synthetic_seed: 0, synthetic_users: 1000, synthetic_items: 500,
  synthetic_events: 60}
train: {objective: last, epochs: 300, max_steps: null, batch_size: 2048, max_tokens: null, lr: 0.001,
  warmup_steps: 0, lr_decay: none, loss: softmax, label_smoothing: 0.0, negatives: 1024, gbce_t: 0.75,
  amp: false, compile: false, cuda_graphs: false, eval_batch_size: 256, patience: 20, seed: 2020,
  device: auto, threads: null, output: runs, name: null, tensorboard: auto, log_every: 50, save_minutes: 10.0}
"""


def test_a_configuration_of_the_first_version_loads(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(FIRST_CONFIG)
    config = read_config(path, CONFIGS)
    assert config == parse("--preset=paper", "--train.cuda_graphs=false")  # which was the default
    content = yaml.safe_load(FIRST_CONFIG)
    content["train"]["cuda_graphs"] = "false"  # it has become one of three words
    content["data"] |= {"max_unpacked_gb": None, "eval_users": None}  # new
    content["data"] |= {"missing": "", "rating_column": "rating", "min_rating": None, "duplicates": "keep"}
    content["data"] |= {"separator": "auto", "columns": None, "time_format": None}
    content["data"] |= {"split": "leave_one_out", "split_quantile": 0.9, "split_date": None}
    content["data"] |= dict.fromkeys(("split_valid_date", "split_targets", "valid_path", "test_path"))
    content["train"] |= {"pieces": None, "shard_items": False, "if_exists": "error"}
    content["train"] |= {"cutoffs": "5,10", "metric": "NDCG@10"}
    assert config.as_dict() == content  # no key is missing, no other is new


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train: {tensorboard: off}", ("tensorboard", "off")),
        ("train: {tensorboard: on}", ("tensorboard", "on")),
        ("train: {tensorboard: false}", ("tensorboard", "off")),
        ("train: {tensorboard: 'Yes'}", ("tensorboard", "on")),
        ("train: {cuda_graphs: off}", ("cuda_graphs", "false")),
        ("train: {cuda_graphs: true}", ("cuda_graphs", "true")),
        ("train: {amp: on}", ("amp", True)),
        ("train: {amp: No}", ("amp", False)),
        ("train: {name: no}", ("name", "no")),
        ("data: {user_column: on}", ("user_column", "on")),
        ("data: {user_column: y}", ("user_column", "y")),
    ],
)
def test_words_that_yaml_may_take_for_booleans(tmp_path: Path, line: str, expected: tuple[str, Any]) -> None:
    """In YAML 1.1, off is false; here it is the word, which each setting takes as it needs."""
    path = tmp_path / "a.yaml"
    path.write_text(line + "\n")
    config = parse(f"--config={path}").as_dict()
    section = line.partition(":")[0]
    assert config[section][expected[0]] == expected[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.lrr", "3"], "unknown option --train.lrr; did you mean '--train.lr'?"),
        (["--lr=3"], "unknown option --lr; did you mean '--train.lr'?"),
        (["--trian.epochs=3"], "unknown option --trian.epochs; did you mean '--train.epochs'?"),
        (["--train.epo", "3"], "unknown option --train.epo; did you mean '--train.epochs'?"),
        (["--train.lr", "abc"], "train.lr: 'abc' is not a number"),
        (["--train.epochs", "1.5"], "train.epochs: '1.5' is not a whole number"),
        (["--train.max_steps", "x"], "train.max_steps: 'x' is not a whole number or null"),
        (["--train.amp", "3"], "train.amp: '3' is not true or false"),
        (["--train.objective", "lst"], "'lst' is not one of last, all; did you mean 'last'?"),
        (["--model.mode", "causl"], "not one of causal, bidirectional; did you mean 'causal'?"),
        (["--model.name", "RecGREL"], "RecBLR, SIGMA; did you mean 'RecGRELA'?"),
        (["--data.order", "recbol"], "did you mean 'recbole'?"),
        (["--preset", "papr"], "preset: 'papr' is not one of causal, paper; did you mean 'paper'?"),
        (["--train.lr"], "--train.lr needs a value"),
        (["--preset"], "--preset needs a value"),
        (["--train.lr", "0"], "train.lr: 0.0 is not above 0"),
        (["--train.epochs", "0"], "train.epochs: 0 is below 1"),
        (["--train.patience", "-1"], "train.patience: -1 is below 0"),
        (["--train.name", "a/b"], "train.name: 'a/b'"),
        (["--model.num_heads", "5"], "model.num_heads: 5 does not divide model.hidden_size 64"),
        (["--learning_rate=1"], "unknown option --learning_rate; did you mean '--train.lr'?"),
        (["--train.learning_rate=1"], "did you mean '--train.lr'?"),
        (["--train.seed", str(2**64)], "train.seed: 18446744073709551616 is above 18446744073709551615"),
        (["--train.threads", "1025"], "train.threads: 1025 is above 1024"),
        (["--train.epochs", str(2**31)], "train.epochs: 2147483648 is above 2147483647"),
        (["--train.patience", str(2**31)], "train.patience: 2147483648 is above"),
        (["--train.save_minutes", ".nan"], "train.save_minutes: '.nan' is not a number"),
        (["--train.name", "a\0b"], "train.name: 'a\\x00b' is not a folder name"),
        (["--config", ""], "--config: '' is not a path"),
        (
            ["--preset", "paper", "--model.mode", "causal"],
            "model.padding: attend requires model.mode bidirectional",
        ),
        (["stray"], "stray"),
    ],
)
def test_wrong_options(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train:\n  lrr: 3\n", "a.yaml: unknown key train.lrr; did you mean 'train.lr'?"),
        ("tran:\n  lr: 3\n", "a.yaml: unknown key tran.lr; did you mean 'train.lr'?"),
        ("lr: 3\n", "a.yaml: unknown key lr; did you mean 'train.lr'?"),
        ("train:\n  lr: fast\n", "a.yaml: train.lr: 'fast' is not a number"),
        ("train:\n  epochs: null\n", "a.yaml: train.epochs: null is not a whole number"),
        ("train: {save_minutes: .nan}\n", "a.yaml: train.save_minutes: nan is not a finite number"),
        ("train: {tensorboard: of}\n", "a.yaml: train.tensorboard: 'of' is not one of auto, on, off"),
        ("train: 3\n", "a.yaml: train: expected a section with keys, not 3"),
        ("- 3\n", "a.yaml: expected the sections model, data and train"),
        ("train:\n  lr: [1\n", "a.yaml: line 3, column 1: not YAML"),
        ("preset: papr\n", "a.yaml: preset: 'papr' is not one of causal, paper"),
        ("model: {name: RecGREL}\n", "model.name: 'RecGREL'"),
        ("model: {name: [x]}\n", "model.name: ['x'] is not one of RecGRELA"),
        ("train:\n  lr: 1\n  lr: 2\n", "a.yaml: line 3, column 3: not YAML: the key 'lr' occurs twice"),
        ("train: {lr: 1}\ntrain: {epochs: 2}\n", "line 2, column 1: not YAML: the key 'train' occurs twice"),
        ("train: {optim: {}}\n", "a.yaml: unknown key train.optim"),
        ("train: {name: [x]}\n", "a.yaml: train.name: ['x'] is not text or null"),
        (
            "train: {cutoffs: [5, 10]}\n",
            "a.yaml: train.cutoffs: [5, 10] is not text; write one text, '5,10'",
        ),
        ("train: {name: {}}\n", "a.yaml: train.name: {} is not text or null"),
        ("train: &t\n  lr: *t\n", "not YAML: an alias (*) refers to a node that contains it"),
        ("train: {name: &t [*t]}\n", "not YAML: an alias (*) refers to a node that contains it"),
        (
            "a: &a [1, 1]\n"
            + "".join(
                f"b{n}: &{'b' * n} [*{'b' * (n - 1) or 'a'}, *{'b' * (n - 1) or 'a'}]\n" for n in range(1, 14)
            ),
            "not YAML: more than 10,000 values, with aliases (*) expanded",
        ),
        ("train: {name: " + "[" * 100, "a.yaml: line 1, column 33: not YAML: nested deeper than 20 levels"),
        ("".join("  " * n + "a:\n" for n in range(30)), "not YAML: nested deeper than 20 levels"),
        ("train: {name: " + "x" * 10_001 + "}", "not YAML: a value of 10,001 characters; the most is 10,000"),
        ("train: {epochs: !!int ''}\n", "not YAML: the tag 'tag:yaml.org,2002:int'; values have no tags"),
        ("train: {amp: !!bool maybe}\n", "not YAML: the tag 'tag:yaml.org,2002:bool'; values have no tags"),
        ("train: {lr: 1" + ":1" * 1000 + ".5}\n", "a.yaml: not YAML: int too large to convert to float"),
        ('train: {name: "\\UFFFFFFFF"}\n', "a.yaml: not YAML: "),
        ("train: {epochs: " + "9" * 5000 + "}\n", "a.yaml: not YAML: Exceeds the limit"),
        (
            "train: {epochs: 0x" + "f" * 5000 + "}\n",
            "train.epochs: an integer of thousands of digits is not a finite number",
        ),
        ("train: {objective: " + "x" * 5000 + "}\n", "x'... (4,900 more characters)"),
        ("x" * 1000 + ": 1\n", "unknown key " + "x" * 100 + "... (900 more characters)"),
        ("#" + "x" * 2**20, "a.yaml: more than 1,048,576 bytes, too long for a file of settings"),
        ("train: {name: 2020-13-01}\n", "a.yaml: not YAML: month must be in 1..12"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: {lr: 0}\n", "train.lr: 0.0 is not above 0"),
        ("train: {lrr: 1}\n", "unknown key train.lrr; did you mean 'train.lr'?"),
        ("model: {name: SASRec, num_heads: 3}\n", "model.num_heads: 3 does not divide model.hidden_size 64"),
    ],
)
def test_an_error_in_config_yaml_names_the_file_once(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_config(path, CONFIGS)
    assert str(caught.value) == f"{path}: {message}"


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_bytes(b"train: \xff\n")
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'settings.yaml'\?"):
        parse("--config", str(tmp_path / "setings.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        parse("--config", str(tmp_path / "settings.yaml"))


def test_wrong_values_given_in_python() -> None:
    with pytest.raises(ConfigError, match="did you mean 'last'"):
        replace(TrainConfig(), objective="las")  # type: ignore[arg-type]


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert with_absolute_path(DataConfig(path="~/x.csv")).path == str(tmp_path / "x.csv")
    (tmp_path / "a.yaml").write_text("train: {epochs: 7}\n")
    assert parse("--config=~/a.yaml").train.epochs == 7


def test_changes_from_the_preset() -> None:
    placement = ["--train.output=x", "--train.name=y", "--train.device=cpu", "--train.threads=2"]
    logging = [
        "--train.log_every=1",
        "--train.save_minutes=1",
        "--train.tensorboard=off",
        "--data.path=z.csv",
    ]
    assert changed_from_preset(parse("--preset=paper", *placement, *logging)) == {}
    changed = changed_from_preset(parse("--preset=paper", "--train.lr=0.1", "--model.num_layers=1"))
    assert changed == {"train.lr": 0.1, "model.num_layers": 1}

"""The models by name. To add one, add its file here and a line to MODELS."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from recgrela.models.base import SequenceModel
from recgrela.models.echomamba4rec import EchoMamba4Rec, EchoMamba4RecConfig
from recgrela.models.eulerformer import EulerFormer, EulerFormerConfig
from recgrela.models.linrec import LinRec, LinRecConfig
from recgrela.models.lrurec import LRURec, LRURecConfig
from recgrela.models.mamba4rec import Mamba4Rec, Mamba4RecConfig
from recgrela.models.official import load_official
from recgrela.models.recblr import RecBLR, RecBLRConfig
from recgrela.models.recgrela import RecGRELA, RecGRELAConfig
from recgrela.models.sasrec import SASRec, SASRecConfig
from recgrela.models.sigma import SIGMA, SIGMAConfig
from recgrela.parallel.rows import RowShards
from recgrela.parallel.table import sharded_tables
from recgrela.settings.model import ModelConfig
from recgrela.system.errors import ConfigError


class ModelEntry(NamedTuple):
    """A model's configuration class and its module class."""

    config: type[ModelConfig]
    model: type[SequenceModel]


MODELS: dict[str, ModelEntry] = {
    "RecGRELA": ModelEntry(RecGRELAConfig, RecGRELA),
    "SASRec": ModelEntry(SASRecConfig, SASRec),
    "LinRec": ModelEntry(LinRecConfig, LinRec),
    "LRURec": ModelEntry(LRURecConfig, LRURec),
    "Mamba4Rec": ModelEntry(Mamba4RecConfig, Mamba4Rec),
    "EchoMamba4Rec": ModelEntry(EchoMamba4RecConfig, EchoMamba4Rec),
    "EulerFormer": ModelEntry(EulerFormerConfig, EulerFormer),
    "RecBLR": ModelEntry(RecBLRConfig, RecBLR),
    "SIGMA": ModelEntry(SIGMAConfig, SIGMA),
}
CONFIGS: dict[str, type[ModelConfig]] = {name: entry.config for name, entry in MODELS.items()}


def _entry(name: str) -> ModelEntry:
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; known models: {', '.join(MODELS)}")
    return MODELS[name]


def build(
    config: Any,
    n_items: int,
    max_len: int,
    rows: RowShards | None = None,
    group: dist.ProcessGroup | None = None,
) -> SequenceModel:
    """The model that `config.name` names, with fresh weights.

    Args:
        config: an instance of a configuration class in MODELS.
        n_items: the number of rows of the item table, including the padding row 0.
        max_len: the length that histories are cut to.
        rows: divides the rows of the item table and of the item bias over the ranks of a process group. With
            the same seed on all ranks, the weights are those of the model with a whole table. None: each
            model has the whole table.
        group: the process group with the ranks of `rows`; None: the default one.

    Raises:
        ConfigError: values contradict each other.
    """
    with nullcontext() if rows is None else sharded_tables(rows, group):
        return _entry(config.name).model(config, n_items, max_len)


def from_official(name: str, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> SequenceModel:
    """A model with the authors' own parameters and settings, in the parameters' dtype and in eval mode.

    Args:
        name: a name in MODELS.
        state_dict: the authors' parameter names -> tensors, as in their checkpoints.
        config: the authors' setting names -> values, such as num_heads and MAX_ITEM_LIST_LENGTH (or
            max_len). Sizes that follow from the parameters' shapes may be omitted.

    Raises:
        ConfigError: the model is unknown or has no authors' weights; a parameter is missing, unknown or of
            a wrong shape; a setting is missing.
    """
    model = _entry(name).model
    if model.official is None:
        raise ConfigError(f"{name} cannot load authors' weights")
    return load_official(model, model.official, name, state_dict, config)


__all__ = [
    "CONFIGS",
    "MODELS",
    "ModelEntry",
    "RecGRELA",
    "RecGRELAConfig",
    "SequenceModel",
    "build",
    "from_official",
]

"""The models, by name. Adding one is a file here and a line in MODELS."""

from __future__ import annotations

from typing import Any, NamedTuple

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
        raise ConfigError(f"unknown model {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name]


def build(config: Any, n_items: int, max_len: int) -> SequenceModel:
    """The model of a configuration (`config.name` says which), with fresh weights.

    Args:
        config: an instance of one of the configuration classes in MODELS.
        n_items: rows of the item table, the padding row 0 included.
        max_len: the length that histories are cut to.

    Raises:
        ConfigError: on values that do not go together.
    """
    return _entry(config.name).model(config, n_items, max_len)


def from_official(name: str, state_dict: dict[str, Tensor], config: dict[str, Any]) -> SequenceModel:
    """A model from the authors' own parameters and settings, in the dtype of the parameters, in eval mode.

    Args:
        name: a name in MODELS.
        state_dict: the authors' parameter names -> tensors, as in their checkpoints.
        config: the authors' setting names -> values, such as num_heads and MAX_ITEM_LIST_LENGTH (or
            max_len). What the shapes of the parameters tell need not be given.

    Raises:
        ConfigError: on an unknown name, a missing or unknown parameter, a wrong shape, a missing setting.
    """
    return load_official(_entry(name).model, state_dict, config)


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

"""Builds a model from the parameters and settings of its authors' code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from recgrela.models.official.names import renamed
from recgrela.system.errors import ConfigError

State = Mapping[str, Tensor]
AuthorSettings = Mapping[str, Any]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class OfficialWeights:
    """How the parameters and settings of the authors' code become ours.

    Attributes:
        config: their parameters and settings -> our configuration; a KeyError names what is missing.
        names: (pattern, replacement) pairs, applied in turn to each of their parameter names.
        layout: changes the layout of renamed parameters. It must be linear: tests also convert gradients.
        unused: a pattern that matches those of their parameters on which no score depends.
    """

    config: Callable[[State, AuthorSettings], Any]
    names: Sequence[tuple[str, str]]
    layout: Callable[[State], State] = lambda state: state
    unused: str = r"$^"

    def convert(self, state: State) -> dict[str, Tensor]:
        """Their parameters, or their parameters' gradients, under our names and in our layout."""
        return dict(self.layout(renamed(state, self.names)))


def load_official(
    build: Callable[[Any, int, int], M],
    official: OfficialWeights,
    label: str,
    state_dict: State,
    settings: AuthorSettings,
) -> M:
    """Builds the model and loads the converted parameters; see `recgrela.models.from_official`.

    Args:
        build: makes the model of a configuration, n_items and max_len.
        official: how their parameters and settings become ours.
        label: names the model in errors.
        state_dict, settings: the authors' parameters and settings.
    """
    state = {name: x for name, x in state_dict.items() if not re.search(official.unused, name)}
    try:
        n_items = state["item_embedding.weight"].shape[0]
        config = official.config(state, settings)
        max_len = int(settings["max_len"] if "max_len" in settings else settings["MAX_ITEM_LIST_LENGTH"])
        converted = official.convert(state)
    except KeyError as error:
        raise ConfigError(f"official {label}: the parameters or settings lack {error}") from None
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ConfigError(f"official {label}: the parameters or settings do not fit: {error}") from None
    found = {"n_items": n_items, "hidden_size": config.hidden_size, "num_layers": config.num_layers}
    for name, value in found.items():
        if settings.get(name, value) != value:
            raise ConfigError(
                f"official {label}: the setting {name} is {settings[name]}, but the parameters have {value}"
            )
    dtypes = {x.dtype for x in converted.values()}
    if len(dtypes) != 1 or not (dtype := dtypes.pop()).is_floating_point:
        raise ConfigError(f"official {label}: the parameters must have one floating dtype")
    with torch.random.fork_rng(devices=[]):  # the fresh weights are overwritten
        model = build(config, n_items, max_len).to(dtype)
    try:
        model.load_state_dict(converted)
    except RuntimeError as error:
        raise ConfigError(f"official {label}: the parameters do not fit: {error}") from None
    return model.eval()

"""The authors' own weights in our models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from recgrela.system.errors import ConfigError

if TYPE_CHECKING:
    from recgrela.models.base import SequenceModel

    M = TypeVar("M", bound=SequenceModel)


def renamed(state: Mapping[str, Tensor], patterns: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The same tensors, with each pattern of a name replaced in turn."""
    out = {}
    for name, x in state.items():
        for pattern, ours in patterns:
            name = re.sub(pattern, ours, name)
        out[name] = x
    return out


def joined(state: dict[str, Tensor], parts: Sequence[str], whole: str) -> dict[str, Tensor]:
    """The same tensors, where those of the names "...PART.suffix" are one, end to end, "...WHOLE.suffix"."""
    out, first = {}, re.compile(rf"(.*\.){re.escape(parts[0])}(\.\w+)$")
    taken = set()
    for name in state:
        if match := first.match(name):
            names = [f"{match[1]}{part}{match[2]}" for part in parts]
            out[f"{match[1]}{whole}{match[2]}"] = torch.cat([state[n] for n in names])
            taken.update(names)
    return {name: x for name, x in state.items() if name not in taken} | out


def count_of(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers the group of a pattern has in the names, such as the layers'."""
    return len({int(m[1]) for name in state if (m := re.search(pattern, name))})


def length_of(settings: Mapping[str, Any]) -> int:
    """max_len by either of its names."""
    return int(settings["max_len"] if "max_len" in settings else settings["MAX_ITEM_LIST_LENGTH"])


def load_official(cls: type[M], state_dict: Mapping[str, Tensor], settings: dict[str, Any]) -> M:
    """See `recgrela.models.from_official`."""
    state = {name: x for name, x in state_dict.items() if not re.search(cls.OFFICIAL_UNUSED, name)}
    label = f"official {cls.__name__}"
    try:
        n_items = state["item_embedding.weight"].shape[0]
        own = cls.official_config(state, settings)
        max_len = length_of(settings)
        ours = cls.own_state(state)
    except KeyError as error:
        raise ConfigError(f"the {label} parameters or settings lack {error}") from None
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ConfigError(f"not the parameters or settings of an {label}: {error}") from None
    found = {"n_items": n_items, "hidden_size": own.hidden_size, "num_layers": own.num_layers}
    for name, value in found.items():
        if settings.get(name, value) != value:
            raise ConfigError(f"the setting {name} is {settings[name]}, the parameters have {value}")
    dtypes = {x.dtype for x in ours.values()}
    if len(dtypes) != 1 or not (dtype := dtypes.pop()).is_floating_point:
        raise ConfigError("the official parameters must all be of one floating dtype")
    with torch.random.fork_rng(devices=[]):  # its fresh weights are overwritten
        model = cls(own, n_items, max_len).to(dtype)
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ConfigError(f"not the parameters of an {label}: {error}") from None
    return model.eval()

"""The online use of a model as one function of tensors: an item of each user, and the best next items."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models import SequenceModel
from recgrela.nn import ModelState
from recgrela.system.errors import ConfigError


class OnlineProgram(nn.Module):
    """A step of a model and a search of the best items, without side effects.

    It differs from `SequenceModel.step` in what makes a client simple:

    - States are functional: the new ones are outputs.
    - The state of a new user is zeros. Where "position" is 0, the program takes the model's initial state.
    - Item 0 stands for no event: it leaves the user's state as it is. So one program also recommends from a
      stored state, and fills a batch up.
    - Complex tensors are given as pairs of real numbers in a last dimension of 2.

    The model is copied to the CPU, in float32 and in eval mode.

    Args:
        model: the model.
        k: the number of items to recommend.
        retired: bool [n_items], items that are never recommended.

    Attributes:
        n_items, k: sizes.
        complex_names: names of the state's tensors that are complex in the model.

    Raises:
        ConfigError: k is below 1 or above the number of items that may be recommended.
        NotImplementedError: the model has no step of fixed shapes.
    """

    item_bias: Tensor

    def __init__(self, model: SequenceModel, k: int, retired: np.ndarray) -> None:
        super().__init__()
        model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.n_items, self.k = model.n_items, k
        weight, item_bias = model.item_embedding.weight, model.item_bias
        bias = weight.new_zeros(model.n_items) if item_bias is None else item_bias.detach().clone()
        bias[torch.from_numpy(retired)] = -torch.inf
        bias[0] = -torch.inf
        count = int(bias.isfinite().sum())
        if not 1 <= k <= count:
            raise ConfigError(f"k: {k} is not in 1 .. {count}, the number of items that may be recommended")
        self.model = model
        self.register_buffer("item_bias", bias)
        # A step fills caches of constants, which a trace cannot compute.
        with torch.no_grad():
            model.fixed_step(torch.ones(2, dtype=torch.int64), model.init_state(2))
        start = model.init_state(1)
        self.complex_names = frozenset(name for name, tensor in start.items() if tensor.is_complex())
        self._starts: dict[str, str] = {}
        for number, (name, tensor) in enumerate(self._to_real(start).items()):
            if tensor.any():
                self._starts[name] = f"start{number}"
                self.register_buffer(self._starts[name], tensor)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """The state of `batch` users without items: zeros, by name."""
        return {name: torch.zeros_like(x) for name, x in self._to_real(self.model.init_state(batch)).items()}

    def forward(
        self, items: Tensor, excluded: Tensor, state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Appends an item to the history of each user, and recommends.

        Args:
            items: [B] int64, the new item of each user; 0: none.
            excluded: [B, S] int64, items not to recommend, filled up with 0.
            state: the users' states, as `init_state` or an earlier call returned them.

        Returns:
            The new states; the best items [B, k] int64 and their scores [B, k] float32, best first. Places
            without an item have item 0 and score -inf.
        """
        is_new, is_event = state["position"] == 0, items > 0
        before = dict(state)
        for name, start in self._starts.items():
            before[name] = _where(is_new, getattr(self, start), state[name])
        stepped = self._to_complex(before)
        self.model.fixed_step(items, stepped)
        after = {name: _where(is_event, x, state[name]) for name, x in self._to_real(stepped).items()}
        scores = F.linear(after["hidden"], self.model.item_embedding.weight, self.item_bias)
        scores, best = scores.scatter(1, excluded, -torch.inf).topk(self.k)
        return after, torch.where(scores == -torch.inf, 0, best), scores

    def _to_real(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.view_as_real(x) if x.is_complex() else x for name, x in state.items()}

    def _to_complex(self, state: Mapping[str, Tensor]) -> ModelState:
        """A copy, for the model to update in place."""
        copies = {name: tensor.clone() for name, tensor in state.items()}
        for name in self.complex_names:
            copies[name] = torch.view_as_complex(copies[name])
        return ModelState(copies)


def _where(users: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """x [B, ...] for some users, bool [B], and `other` for the rest."""
    return torch.where(users.view(-1, *[1] * (other.dim() - 1)), x, other)

"""Recommendations, scores and vectors of a trained model, in Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recgrela.data import DataConfig, Interactions
from recgrela.inference.arguments import (
    HistoryLists,
    Ids,
    to_count,
    to_events,
    to_histories,
    to_ids,
)
from recgrela.inference.captured import CapturedStep
from recgrela.inference.catalogue import Catalogue
from recgrela.inference.encoding import encode, evaluating
from recgrela.inference.histories import Histories, from_interactions, from_tokens, load_histories
from recgrela.inference.tables import SCHEMA, ItemTables
from recgrela.inference.training import fit_run
from recgrela.models import SequenceModel
from recgrela.ops.checks import HALF
from recgrela.retrieval import ItemIndex
from recgrela.retrieval.index import PRECISIONS
from recgrela.runs.folder import CheckpointName
from recgrela.runs.items import Items
from recgrela.runs.saved import SavedRun, load_run, save_weights
from recgrela.system.device import use_device
from recgrela.system.errors import ConfigError, RunError
from recgrela.system.files import expand_path
from recgrela.system.out_of_memory import MemoryPhase

USERS_AT_A_TIME = 1024
SEARCHING = MemoryPhase("searching the best items", "lower k (--k), or give more memory")


class Recommender:
    """Recommends next items with a trained model.

    Users, items and titles are original ids and texts everywhere. The model is used in eval mode, and is
    returned to the mode that it was in.

    Args:
        model: the model. Its weights must not change afterwards; make another Recommender if they do.
        items: the model's items, or the data that it was trained on, whose histories are then known too.
        history_len: the number of last items of a history that the model uses; None: the model's `max_len`.
        precision: the precision of the search for the best items, "float32" or "int8"; both are exact.
    """

    def __init__(
        self,
        model: SequenceModel,
        items: Items | Interactions,
        *,
        history_len: int | None = None,
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
        if model.item_embedding.weight.dtype in HALF:
            raise ConfigError("the model is in half precision; convert it by model.float()")
        histories = None
        if isinstance(items, Interactions):
            data, items = items, Items.of(items)
            histories = from_interactions(Catalogue(items), data)
        if len(items.tokens) != model.n_items:
            raise ConfigError(f"the model has {model.n_items} items, but {len(items.tokens)} are given")
        self.model, self.catalogue = model, Catalogue(items)
        self.history_len = model.max_len if history_len is None else to_count(history_len, "history_len")
        self._tables = ItemTables(items)
        self.run: SavedRun | None = None
        self._precision: str = precision
        self._histories: Histories | None = histories

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        events: str | Any | None = None,
        checkpoint: CheckpointName | None = None,
        device: str = "auto",
        precision: str = "float32",
    ) -> Recommender:
        """The model of a run folder, or of a folder that `save` wrote.

        Args:
            run: the folder.
            events: today's events, a path or a table (pyarrow, or any with the Arrow C stream interface), in
                the format of the training data; users' histories are taken from them. None: from the run's
                data, whatever it contains now.
            checkpoint: "best" or "last"; None: the one of the run's final table.
            device: "cpu", "cuda", "cuda:N" or "auto".
            precision: see the class.

        Raises:
            RunError, DataError, ConfigError: the folder, its files, the events or the device are not usable.
        """
        if checkpoint not in (None, *get_args(CheckpointName)):
            raise ConfigError(
                f"checkpoint: {checkpoint!r} is not one of {', '.join(get_args(CheckpointName))}"
            )
        saved = load_run(expand_path(str(run), "run"), checkpoint, use_device(device))
        made = cls(
            saved.model, saved.read_items(), history_len=saved.config.data.history_len, precision=precision
        )
        made.run = saved
        if events is not None:
            made.read_events(events)
        return made

    @classmethod
    def fit(cls, events: str | Any, settings: Mapping[str, Any] | None = None) -> Recommender:
        """Trains a model as `python -m recgrela.train` does, in a run folder, and loads it.

        Args:
            events: a path, a list of paths, or a table of any library (see `load_table`) with the columns of
                `data.user_column` and so on; a table is stored as a Parquet file beside the run folder, so
                that the run can be evaluated and resumed.
            settings: values by dotted key, such as {"model.name": "SASRec", "train.epochs": 10}, and
                "preset"; see `python -m recgrela.train --help`.

        Raises:
            ConfigError, DataError, RunError: see `recgrela.training.trainer.train`.
        """
        return cls.load(
            fit_run(events, settings or {}), device=str((settings or {}).get("train.device", "auto"))
        )

    # ---- users

    def read_events(self, events: str | Any) -> None:
        """Takes users' histories from these events from now on; see `load`."""
        config = self.run.config.data if self.run is not None else DataConfig()
        self._histories = load_histories(self.catalogue, to_events(events), config)

    @property
    def histories(self) -> Histories:
        """The histories of all users.

        Raises:
            RunError: the Recommender was made without data.
        """
        if self._histories is None:
            if self.run is None:
                raise RunError("this Recommender has no users; call read_events, or give histories")
            self.read_events(self.run.config.data.path)
        assert self._histories is not None
        return self._histories

    def select(self, users: Ids | None = None, histories: HistoryLists | None = None) -> Histories:
        """The histories of some users, given histories, or without both those of all users.

        A history may be empty: `recommend` refuses it.

        Raises:
            DataError: a user is unknown. ConfigError: an argument is not a list of ids.
        """
        if users is not None and histories is not None:
            raise ConfigError("give users or histories, not both")
        if histories is not None:
            return from_tokens(self.catalogue, *to_histories(histories))
        if users is not None:
            return self.histories.find(to_ids(users, "users"), "the events")
        return self.histories.without_empty()

    # ---- recommendations

    def recommend(
        self,
        users: Ids | None = None,
        *,
        histories: HistoryLists | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        allow: Ids | None = None,
        deny: Ids | None = None,
    ) -> pa.Table:
        """The k items with the highest scores after each history; equal scores are ordered by item id.

        Args:
            users: users of the events; without users and histories, all users.
            histories: histories of original item ids, oldest first, by user or in a list; users of a list are
                named "0", "1", and so on. Items that the model does not know are skipped.
            k: the number of items of a user; fewer if fewer may be recommended.
            exclude_seen: whether items of the whole history are excluded.
            allow: the only items to recommend. Unknown ids are ignored.
            deny: items not to recommend.

        Returns:
            A table with the columns user, rank (from 1), item, title (null if unknown) and score, of B k rows
            at most.

        Raises:
            DataError: a user is unknown, a history has no known item, or no item may be recommended.
        """
        batches = self.iter_recommendations(self.select(users, histories), k, exclude_seen, allow, deny)
        return pa.Table.from_batches(batches, SCHEMA)

    def iter_recommendations(
        self,
        histories: Histories,
        k: int = 10,
        exclude_seen: bool = True,
        allow: Ids | None = None,
        deny: Ids | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """`recommend` in batches of users, for more users than fit into memory as a table."""
        k = min(to_count(k, "k"), len(self.catalogue))
        histories.check_not_empty()
        allowed = self._allowed(
            None if allow is None else to_ids(allow, "allow"), None if deny is None else to_ids(deny, "deny")
        )
        for begin in range(0, len(histories), USERS_AT_A_TIME):
            part = histories.take(np.arange(begin, min(begin + USERS_AT_A_TIME, len(histories))))
            excluded = None
            if exclude_seen:
                seen = (torch.from_numpy(part.items), torch.from_numpy(part.offsets))
                excluded = (seen[0].to(self.device), seen[1].to(self.device))
            with SEARCHING:
                found = self.index.search(self._encode(part), k, excluded=excluded, allowed=allowed)
                rows = self._tables.make(part.users, *found)
            yield rows

    # ---- scores and vectors

    def score(self, histories: HistoryLists, items: Ids) -> np.ndarray:
        """The scores of given items after each history, float32 [B, n].

        Raises:
            DataError: an item is unknown, or a history has no item that the model knows.
        """
        ids = self._ids(to_ids(items, "items"))
        hidden = self._encode(self.select(histories=histories))
        scores = hidden @ self._weight[ids].T
        bias = self.model.item_bias
        return (scores if bias is None else scores + bias.detach()[ids].float()).cpu().numpy()

    def similar_items(self, items: Ids, k: int = 10) -> pa.Table:
        """The k items whose vectors have the highest cosine with the vector of each item, itself excluded.

        Returns:
            A table with the columns item, rank, similar, title and score (the cosine).

        Raises:
            DataError: an item is unknown.
        """
        tokens, k = to_ids(items, "items"), min(to_count(k, "k"), len(self.catalogue))
        ids = self._ids(tokens)
        excluded = (ids, torch.arange(len(ids) + 1, device=self.device))
        allowed = self._allowed(None, None)
        found = self._cosine_index.search(self._unit[ids], k, excluded=excluded, allowed=allowed)
        rows = pa.Table.from_batches([self._tables.make(tokens, *found)])
        return rows.rename_columns(["item", "rank", "similar", "title", "score"])

    def item_vectors(self, items: Ids | None = None) -> np.ndarray:
        """The vectors of items, float32 [n, D]; of all items, in the order of `item_ids`, for None."""
        if items is None:
            return self._weight[1:].cpu().numpy().copy()
        return self._weight[self._ids(to_ids(items, "items"))].cpu().numpy()

    def user_vectors(
        self,
        users: Ids | None = None,
        *,
        histories: HistoryLists | None = None,
    ) -> np.ndarray:
        """The hidden states after histories, float32 [B, D].

        Their products with `item_vectors` are scores, except that LRURec adds a bias of each item.

        Args:
            users, histories: see `recommend`.
        """
        return self._encode(self.select(users, histories)).cpu().numpy()

    @property
    def item_ids(self) -> list[str]:
        """The original ids of all items."""
        return self.catalogue.items.tokens[1:]

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.item_embedding.weight.device

    @cached_property
    def index(self) -> ItemIndex:
        """The search for the items with the highest scores."""
        bias = self.model.item_bias
        return self._make_index(self._weight, None if bias is None else bias.detach().float())

    def _make_index(self, weight: Tensor, bias: Tensor | None) -> ItemIndex:
        try:
            return ItemIndex(weight, bias, precision=self._precision)
        except ValueError as error:
            raise RunError(
                f"the model cannot recommend: {error}; train it again, or take another checkpoint"
            ) from error

    @cached_property
    def step(self) -> CapturedStep:
        """`model.step`, faster for a few users; the model must be in eval mode."""
        return CapturedStep(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights and settings, which names the states that they computed (32 hex digits)."""
        digest = hashlib.sha256(json.dumps(asdict(self.model.config), sort_keys=True).encode())
        digest.update(f"{self.model.max_len}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]

    def save(self, folder: str | Path) -> None:
        """Writes what `load` needs: weights, settings and items, without the state of training.

        Raises:
            RunError: the folder exists, cannot be written, or the model is not from a run.
        """
        if self.run is None:
            raise RunError(
                "this Recommender has no settings to save; train with Recommender.fit, or load a run"
            )
        save_weights(self.run, self.catalogue.items, expand_path(str(folder), "folder"))

    # ---- parts

    def _encode(self, histories: Histories) -> Tensor:
        """The hidden states after histories, float32 [B, D]. Raises DataError for an empty history."""
        histories.check_not_empty()
        with evaluating(self.model):
            return encode(self.model, histories, self.history_len)

    @cached_property
    def _weight(self) -> Tensor:
        return self.model.item_embedding.weight.detach().float()

    @cached_property
    def _unit(self) -> Tensor:
        return torch.nn.functional.normalize(self._weight)

    @cached_property
    def _cosine_index(self) -> ItemIndex:
        return self._make_index(self._unit, None)

    def _ids(self, tokens: Sequence[str]) -> Tensor:
        """Item ids [n] on the model's device. Raises DataError for an unknown item."""
        return torch.from_numpy(self.catalogue.known_ids(tokens)).to(self.device)

    def _allowed(self, allow: Sequence[str] | None, deny: Sequence[str] | None) -> Tensor | None:
        mask = self.catalogue.allowed(allow, deny)
        return None if mask is None else mask.to(self.device)

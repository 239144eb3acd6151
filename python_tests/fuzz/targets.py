"""What the sandbox runs: each function returns "result", or "error" for an error that names its cause."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recgrela.data import DataConfig, load
from recgrela.data.item_file import read_item_file
from recgrela.inference.lists import read_histories, read_lines
from recgrela.inference.recommender import Recommender
from recgrela.models import CONFIGS
from recgrela.runs.folder import RunFolder
from recgrela.runs.ranks import read_ranks
from recgrela.runs.saved import evaluate, load_data, load_run
from recgrela.settings.run import read_config, read_run
from recgrela.system.errors import UserError
from recgrela.system.text import MAX_MESSAGE


def _outcome(function: Callable[[], Any]) -> str:
    """Checks that an error is one printable line of bounded length."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning is a line that no user asked for
            function()
    except UserError as error:
        text = str(error)
        assert text.strip() and len(text) < MAX_MESSAGE + 100, f"{len(text)} characters"
        assert "\n" not in text and "\x1b" not in text
        text.encode()
        return "error"
    return "result"


def read_file(kind: str, path: str, content: bytes) -> str:
    """Reads a file of some content."""
    Path(path).write_bytes(content)
    unfiltered = DataConfig(path=path, min_user_events=0, min_item_events=0)
    readers: dict[str, Callable[[], Any]] = {
        "events": lambda: load(unfiltered),
        "sequences": lambda: load(replace(unfiltered, format="sequences", order="file")),
        "items": lambda: read_item_file(path),
        "vectors": lambda: read_item_file(str(Path(path).with_suffix(".csv"))),
        "settings": lambda: read_run(["--config", path], CONFIGS),
        "histories": lambda: read_histories(path),
        "lines": lambda: read_lines(path, "--users"),
    }
    return _outcome(readers[kind])


def open_run(folder: str, name: str, content: bytes) -> str:
    """Loads, evaluates and uses a run, one file of which has some content; restores the file."""
    path = Path(folder) / name
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        outcomes = [
            _outcome(lambda use=use: use(Path(folder))) for use in (_recommend, _evaluate, _read_files)
        ]
    finally:
        path.write_bytes(before)
    return "error" if "error" in outcomes else "result"


def _recommend(path: Path) -> None:
    recommender = Recommender.load(path, device="cpu")
    items = recommender.item_ids[:3]
    recommender.recommend(histories=[items], k=3)


def _evaluate(path: Path) -> None:
    run = load_run(path, None, torch.device("cpu"))
    evaluate(run, load_data(run), ("valid",), 64)


def _read_files(path: Path) -> None:
    folder = RunFolder.open(path)
    read_config(folder.config_path, CONFIGS)
    folder.metrics.read()
    read_ranks(folder.ranks_path, "test")
    load_run(path, "last", torch.device("cpu"))

"""Checks of numbers and JSON objects in the files of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from recgrela.settings.train import metric_names
from recgrela.system.errors import RunError

MAX_COUNT = 2**53  # beyond it, a float does not hold every whole number


def is_count(value: object, low: int = 0, high: int = MAX_COUNT) -> bool:
    """Whether a value of a JSON file is a whole number from `low` to `high`, and not a bool."""
    return type(value) is int and low <= value <= high


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value of a JSON file is a finite number from `low` to `high`, and not a bool."""
    if type(value) is int:
        return abs(value) <= MAX_COUNT and low <= value <= high
    return type(value) is float and math.isfinite(value) and low <= value <= high


def is_scores(value: object) -> bool:
    """Whether a value of a JSON file is that of `Ranking.as_dict`, with metrics from 0 to 1."""
    return (
        isinstance(value, dict)
        and is_count(value.get("users"), 1)
        and all(_has_metrics(value.get(kind)) for kind in ("unmasked", "masked"))
        and value["unmasked"].keys() == value["masked"].keys()
        and ("lists" not in value or _has_lists(value["lists"], value["unmasked"]))
    )


def _has_lists(value: object, metrics: Mapping[str, float]) -> bool:
    """Whether a value is that of `ListFigures.as_dict`, at the cut-offs of some metrics."""
    cutoffs = {name.partition("@")[2] for name in metrics}
    names = {f"{figure}@{k}" for figure in ("coverage", "popularity") for k in cutoffs}
    return isinstance(value, dict) and all(
        isinstance(figures := value.get(kind), dict)
        and set(figures) == names
        and all(is_number(figure, 0) for figure in figures.values())
        for kind in ("unmasked", "masked")
    )


def _has_metrics(value: object) -> bool:
    """Whether a value is an object of all metrics at some cut-offs, from 0 to 1."""
    if not isinstance(value, dict) or not value:
        return False
    cutoffs = {name.partition("@")[2] for name in value}
    return (
        all(text.isdecimal() for text in cutoffs)
        and set(value) == set(metric_names(list(map(int, cutoffs))))
        and all(is_number(score, 0, 1) for score in value.values())
    )


def check_count(path: Path, name: str, value: object, low: int = 0, high: int = MAX_COUNT) -> None:
    """Raises RunError, which names the file `path`, if a value is not a whole number from `low` to `high`."""
    if not is_count(value, low, high):
        raise RunError(f"{path}: damaged: {name} is {value!r}"[:500])


def read_object(path: Path, text: str | bytes, what: str) -> dict[str, Any]:
    """The object in a text of JSON, without NaN and infinite numbers.

    Args:
        path: the file of the text, for errors.
        text: the text; bytes are UTF-8.
        what: what the text is, for errors.

    Raises:
        RunError: it is not such an object.
    """
    try:
        content = json.loads(text if isinstance(text, str) else text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged: {what} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: damaged: {what} is not an object")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")

"""Checks that the current data and settings are those of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recgrela.data import Interactions
from recgrela.runs import checkpoint
from recgrela.runs.folder import RunFolder
from recgrela.runs.protocol import fixed_settings, packed_sha256
from recgrela.runs.state import TrainState
from recgrela.runs.values import MAX_COUNT, check_count, is_count
from recgrela.settings.run import RunConfig
from recgrela.settings.yaml import flatten
from recgrela.system.errors import RunError

MAX_ITEMS = 2**31 - 1  # ids are int32


def check_data(folder: RunFolder, data: Interactions) -> None:
    """Raises RunError if the data differs from that of the run."""
    recorded, source = recorded_data(folder), data.description["source"]
    if data.sha256 != recorded["sha256"]:
        raise RunError(
            f"{source}: not the data of this run: its sha256 is {data.sha256[:16]}..., the run's data has "
            f"{recorded['sha256'][:16]}...; restore the file, or start a new run"
        )
    for name in ("users", "items", "events"):
        if data.description[name] != recorded[name]:
            raise RunError(
                f"{source}: {data.description[name]} {name} after filtering, but the run had {recorded[name]}"
            )
    for key, before in recorded.get("split", {}).items():
        if (now := data.description["split"].get(key)) != before:
            raise RunError(
                f"{source}: the split differs from that of this run: {key} is {now}, but was {before}; "
                f"restore the section data of {folder.config_path}"
            )
    if packed_sha256(data) != recorded["packed_sha256"]:
        raise RunError(
            f"{source}: the events or their order differ from those of this run; restore the section data of "
            f"{folder.config_path} (order, filter, columns)"
        )


def check_resumable(folder: RunFolder) -> None:
    """Raises RunError if a run has weights only."""
    if folder.read_protocol().get("growth"):
        raise RunError(
            f"{folder.path}: its items were changed, so it has weights only; begin a new run from them with "
            f"--init {folder.path}"
        )


def check_settings(folder: RunFolder, config: RunConfig) -> None:
    """Raises RunError if config.yaml was edited, so that a fixed setting differs from protocol.json.

    A setting that protocol.json lacks, because an earlier version made the run, must have its default.

    Args:
        folder: the run folder.
        config: the settings in config.yaml, or those of a run that resumes.
    """
    content = folder.read_protocol()
    recorded = content["settings"] | flatten({"model": content["model"]})
    for key, value in fixed_settings(config).items():
        if key not in recorded:
            if value == config.options[key].default:
                continue
            raise RunError(
                f"{folder.protocol_path}: the setting {key} is missing, but it is {value!r} in "
                f"{folder.config_path.name}; restore the file, or start a new run"
            )
        # Versions may record a value in different types, such as false and "false".
        if value != config.options[key].read(recorded[key]):
            raise RunError(
                f"{folder.config_path}: {key} is {value!r}, but the run was started with {recorded[key]!r}; "
                "restore the value, or start a new run"
            )


def check_complete(folder: RunFolder) -> None:
    """Raises RunError, which names the file, if a run lost one that its other files show it had."""
    metrics, last = folder.metrics.path, folder.checkpoint_path("last")
    again = f"restore the file, or compute it again with python -m recgrela.train --resume {folder.path}"
    needed: dict[Path, str] = {}
    if folder.results_path.is_file():
        needed = {folder.ranks_path: again, metrics: "restore the file"}
    elif any(record["kind"] == "final" for record in folder.metrics.read()):
        needed[folder.results_path] = again
    if last.is_file() and not folder.read_protocol().get("growth"):
        state = TrainState.from_dict(checkpoint.read_meta(last)["state"], last)
        needed |= {metrics: "restore the file"} if state.epoch > 0 else {}
    for path, hint in needed.items():
        if not path.is_file():
            raise RunError(f"{path}: missing; {hint}")


def recorded_items(folder: RunFolder) -> int:
    """Number of rows of a run's item table, padding included. Raises RunError if protocol.json is damaged.

    The items of the run's data, and those that were added to it later.
    """
    items, growth = recorded_data(folder)["items"], folder.read_protocol().get("growth", [])
    for entry in growth:
        if not is_count(entry.get("items"), items, MAX_ITEMS):
            raise RunError(f"{folder.protocol_path}: damaged: growth has items {entry.get('items')!r:.100}")
        items = entry["items"]
    return items


def recorded_ids(folder: RunFolder) -> str | None:
    """The hash of the original ids of a run's items, None in a run of an earlier version."""
    content = folder.read_protocol()
    sections = [content.get("items", {}), *content.get("growth", [])]
    return sections[-1].get("ids_sha256")


def recorded_data(folder: RunFolder) -> dict[str, Any]:
    """The section `data` of protocol.json. Raises RunError if it is damaged."""
    section = folder.read_protocol()["data"]
    for key in ("sha256", "packed_sha256"):
        if not isinstance(section.get(key), str):
            raise RunError(f"{folder.protocol_path}: damaged: data.{key} is {section.get(key)!r:.100}")
    if not isinstance(section.get("split", {}), dict):
        raise RunError(f"{folder.protocol_path}: damaged: data.split is {section['split']!r:.100}")
    for key, high in (("users", MAX_COUNT), ("items", MAX_ITEMS), ("events", MAX_COUNT)):
        check_count(folder.protocol_path, f"data.{key}", section.get(key), 1, high)
    return section

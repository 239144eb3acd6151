"""Checks that the current data and settings are those of a run."""

from __future__ import annotations

from typing import Any

from recgrela.data import Interactions
from recgrela.runs.folder import RunFolder
from recgrela.runs.protocol import fixed_settings, packed_sha256
from recgrela.settings.run import RunConfig
from recgrela.settings.yaml import flatten
from recgrela.system.errors import RunError


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
    """Raises RunError if config.yaml was edited, so that a fixed setting differs from protocol.json."""
    content = folder.read_protocol()
    recorded = content["settings"] | flatten({"model": content["model"]})
    for key, value in fixed_settings(config).items():
        if key not in recorded:
            raise RunError(
                f"{folder.protocol_path}: the setting {key} is missing: another version of recgrela made the "
                "run, or the file is damaged; start a new run"
            )
        # Versions may record a value in different types, such as false and "false".
        if value != config.options[key].read(recorded[key]):
            raise RunError(
                f"{folder.config_path}: {key} is {value!r}, but the run was started with {recorded[key]!r}; "
                "restore the value, or start a new run"
            )


def recorded_items(folder: RunFolder) -> int:
    """Number of rows of a run's item table, padding included. Raises RunError if protocol.json is damaged.

    The items of the run's data, and those that were added to it later.
    """
    items, growth = recorded_data(folder)["items"], folder.read_protocol().get("growth", [])
    for entry in growth:
        if not isinstance(entry.get("items"), int) or entry["items"] < items:
            raise RunError(f"{folder.protocol_path}: damaged: growth has items {entry.get('items')!r}")
        items = entry["items"]
    return items


def recorded_data(folder: RunFolder) -> dict[str, Any]:
    """The section `data` of protocol.json. Raises RunError if it is damaged."""
    section = folder.read_protocol()["data"]
    kinds = {"sha256": str, "packed_sha256": str, "users": int, "items": int, "events": int}
    for key, kind in kinds.items():
        if not isinstance(section.get(key), kind):
            raise RunError(f"{folder.protocol_path}: damaged: data.{key} is {section.get(key)!r}")
    return section

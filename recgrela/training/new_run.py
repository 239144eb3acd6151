"""The run folder of a new run, with everything that is known before training."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from recgrela.data.reading import reading_notes
from recgrela.runs import protocol
from recgrela.runs.folder import RunFolder, stem_of
from recgrela.runs.items import Items, write_items
from recgrela.runs.lock import owned
from recgrela.system.console import say
from recgrela.system.files import atomic_write_text, expand_path
from recgrela.training.resumption import resumes_existing
from recgrela.training.session import Session
from recgrela.training.warm_start import WarmStart

# Files of a run folder before the first checkpoint.
UNFINISHED = ("config.yaml", "protocol.json", "items.parquet", "metrics.jsonl", ".lock")


def create_folder(
    session: Session, console: Console, stack: ExitStack, origin: WarmStart | None = None
) -> RunFolder:
    """Make the folder of a new run, and print the data and model.

    Args:
        session: the run's parts.
        console: the output.
        stack: holds the folder's lock.
        origin: what the run takes over from another one; None if its weights are fresh.

    Raises:
        RunError: the name is taken, or a file cannot be written; then no folder is left.
    """
    config, data = session.config, session.data
    processes = session.processes.world
    content = protocol.describe(
        config, data, session.batches, session.device, session.step.max_tokens, processes
    )
    if origin is not None:
        content["init"] = origin.record
    is_modified = origin is not None or bool(content["changed_from_preset"])
    stem = stem_of(config.data.path, config.preset) + "-modified" * is_modified
    output, name = expand_path(config.train.output, "train.output"), config.train.name
    if name is not None and resumes_existing(config, session.processes.launch):
        remove_unfinished(output / name)
    folder = RunFolder.create(output, name, stem)
    stack.enter_context(owned(folder.path))
    try:
        atomic_write_text(folder.config_path, config.to_yaml())
        write_items(folder.items_path, origin.items if origin is not None else Items.of(data))
        folder.write_json(folder.protocol_path, content)
    except BaseException:
        shutil.rmtree(folder.path)
        raise
    _show(session, content, folder, console)
    if origin is not None:
        say(console, origin.describe())
    return folder


def remove_unfinished(folder: Path) -> None:
    """Remove the folder of a run that ended before its first checkpoint; another folder is left alone.

    Raises:
        RunError: another process writes the folder.
    """
    if not is_unfinished(folder):
        return
    with owned(folder):
        if is_unfinished(folder):  # the previous owner may just have written a checkpoint
            shutil.rmtree(folder)


def is_unfinished(folder: Path) -> bool:
    """Whether a folder has no other files than those of a run before its first checkpoint."""
    return folder.is_dir() and not {path.name for path in folder.iterdir()} - set(UNFINISHED)


def describe_targets(facts: dict[str, Any]) -> str:
    """The training events and targets of a split on one line, from the counts in protocol.json."""
    parts = [f"split by {facts['split']}: {facts['train']['events']:,} training events"]
    for name in ("valid", "test"):
        counts, begin = facts[name], facts.get(f"{name}_from_date") or facts.get(f"{name}_from")
        since = "" if begin is None else f" from {begin} on"
        parts.append(
            f"{name} {counts['targets']:,} targets of {counts['users']:,} users{since} "
            f"({counts['cold_targets']:,} cold ones left out)"
        )
    return "; ".join(parts)


def _show(session: Session, content: dict[str, Any], folder: RunFolder, console: Console) -> None:
    config, processes = session.config, session.processes.world
    counts = content["data"]
    say(console, f"run folder {folder.path}")
    say(
        console,
        f"{counts['source']}: {counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} "
        f"events (counts include padding ids); {session.batches.num_targets:,} targets per epoch",
    )
    for note in reading_notes(counts):
        say(console, note)
    if session.data.split is not None:
        say(console, describe_targets(counts["split"]))
    on = content["machine"]["device_name"] + f", in {processes} processes" * (processes > 1)
    say(console, f"{config.model.name}: {session.model.num_parameters:,} parameters, on {on}")

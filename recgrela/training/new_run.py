"""The run folder of a new run, with everything that is known before training."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

from rich.console import Console

from recgrela.runs import protocol
from recgrela.runs.folder import RunFolder, stem_of
from recgrela.runs.items import Items, write_items
from recgrela.runs.lock import owned
from recgrela.system.console import say
from recgrela.system.files import atomic_write_text, expand_path
from recgrela.training.session import Session
from recgrela.training.warm_start import WarmStart


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
    folder = RunFolder.create(expand_path(config.train.output, "train.output"), config.train.name, stem)
    stack.enter_context(owned(folder.path))
    try:
        atomic_write_text(folder.config_path, config.to_yaml())
        write_items(folder.items_path, origin.items if origin is not None else Items.of(data))
        folder.write_json(folder.protocol_path, content)
    except BaseException:
        shutil.rmtree(folder.path)
        raise
    counts = content["data"]
    say(console, f"run folder {folder.path}")
    say(
        console,
        f"{counts['source']}: {counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} "
        f"events (counts include padding ids); {session.batches.num_targets:,} targets per epoch",
    )
    on = content["machine"]["device_name"] + f", in {processes} processes" * (processes > 1)
    say(console, f"{config.model.name}: {session.model.num_parameters:,} parameters, on {on}")
    if origin is not None:
        say(console, origin.describe())
    return folder

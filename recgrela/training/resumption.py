"""Resumes a run from its last checkpoint."""

from __future__ import annotations

from rich.console import Console

from recgrela.runs import checkpoint, protocol
from recgrela.runs.folder import RunFolder
from recgrela.runs.state import TrainState
from recgrela.system.console import say
from recgrela.system.files import atomic_write_text
from recgrela.training.schedule import Place, Schedule, describe_schedule, extension, recorded_schedules
from recgrela.training.session import Session


def resume(folder: RunFolder, session: Session, console: Console) -> tuple[TrainState, list[Schedule]]:
    """Load the last checkpoint into the session, and roll the folder's files back to that checkpoint.

    All processes read the files and check them before the first one changes any. If `train.epochs` has grown and the learning rate
    decays, a new schedule begins.

    Returns:
        The counters, and the schedules of the learning rate.

    Raises:
        ConfigError: `train.epochs` is below the end of the schedule; the folder is unchanged.
        RunError: a file is missing or damaged; the folder is unchanged.
    """
    config, step, processes = session.config, session.step, session.processes
    path = folder.find_checkpoint("last")
    state = TrainState.from_dict(checkpoint.load(path, session.model, step.optimizer), path)
    step.loss_sum.fill_(state.loss_sum if processes.is_first else 0.0)
    if state.best_score is not None:
        checkpoint.check(folder.find_checkpoint("best"), session.model)
    content, records = folder.read_protocol(), folder.metrics.first_epochs(state.epoch)
    schedules = recorded_schedules(content, folder.protocol_path, config.train)
    place = Place(state.epoch, state.step, session.batches.num_steps, state.total_steps)
    added = extension(config.train, schedules, place)
    if state.reason_to_stop(config.train) is not None:
        added = None  # it begins when training continues

    entry = protocol.resumption(config, state.total_steps, session.device)
    if added is not None:
        schedules.append(added)
        entry["schedule"] = added.as_dict()

    def change_files() -> None:
        for result in (folder.results_path, folder.ranks_path):  # training will outdate them
            result.unlink(missing_ok=True)
        folder.metrics.rewrite(records)
        # In this order, a run killed in between begins the same schedule when it is resumed.
        atomic_write_text(folder.config_path, config.to_yaml())
        folder.write_json(folder.protocol_path, content | {"resumed": [*content.get("resumed", []), entry]})

    processes.wait()  # until all have read the files
    processes.on_first(change_files)
    say(console, f"resuming {folder.path} {state.describe()}")
    if added is not None:
        say(console, f"new schedule from step {added.step} on: {describe_schedule(config.train, added)}")
    here = protocol.environment(session.device)
    others = [other for other in protocol.environments(content) if other != here]
    if others:
        changes = [
            f"{key} was {old} and is now {here[key]}" for key, old in others[-1].items() if old != here[key]
        ]
        say(console, f"note: rounding may differ: {', '.join(changes)}")
    return state, schedules

"""The training loop: epochs, validation, checkpoints, early stopping and the final test."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from recgrela.evaluation.metrics import Ranking
from recgrela.models.base import PER_ITEM
from recgrela.parallel.launch import Launch
from recgrela.parallel.processes import Processes, join
from recgrela.runs import checkpoint
from recgrela.runs.consistency import check_data, check_resumable, check_settings
from recgrela.runs.curves import draw_curves
from recgrela.runs.folder import CheckpointName, RunFolder
from recgrela.runs.lock import owned
from recgrela.runs.state import TrainState
from recgrela.runs.tensor_file import NotFinite
from recgrela.runs.tensorboard import EventLog
from recgrela.settings.run import RunConfig
from recgrela.system.console import say
from recgrela.system.device import use_device
from recgrela.system.errors import RunError
from recgrela.system.memory import PeakMemory
from recgrela.system.out_of_memory import MemoryPhase
from recgrela.system.output import display_console
from recgrela.system.progress import ProgressDisplay
from recgrela.system.signals import Stopped, StopSignals
from recgrela.training.agreement import Agreement
from recgrela.training.final_test import run_final_test
from recgrela.training.new_run import create_folder
from recgrela.training.resumption import find_existing, resume
from recgrela.training.schedule import Place, Schedule, learning_rate
from recgrela.training.session import Session, check_same_settings, open_session
from recgrela.training.warm_start import Start, WarmStart, warm_start

STEP = MemoryPhase(
    "taking a training step",
    "lower train.max_tokens, then train.negatives (sampled losses), model.hidden_size or data.max_len",
)


@dataclass(frozen=True)
class Result:
    """The outcome of `train`.

    Attributes:
        folder: the run folder.
        state: the counters at the end.
        rankings: the final table by split, None if a signal stopped the run.
        signum: the signal, None if training ended by itself.
    """

    folder: RunFolder
    state: TrainState
    rankings: dict[str, Ranking] | None
    signum: int | None = None


def train(
    config: RunConfig,
    resumed: RunFolder | None = None,
    console: Console | None = None,
    start: Start | None = None,
) -> Result:
    """Train from fresh weights or from those of another run, or resume a run.

    A resumed run ends with the weights of an uninterrupted one. A new run whose name exists is resumed if the
    settings or torchrun's restarts ask for it.

    SIGINT, SIGTERM and SIGHUP end training after the current step, with a checkpoint to resume from.

    Several processes, started by torchrun, share the batches. The first one writes the folder and the output.

    Args:
        config: the settings.
        resumed: the folder of the run to resume, None for a new run.
        console: the output.
        start: where the weights of a new run are from; None for fresh ones.

    Raises:
        ConfigError, DataError, RunError: settings, data or files are wrong, which is reported before anything
            is written if possible, another process writes the run folder, or training diverges.
    """
    launch, memory = Launch.read(), PeakMemory()
    console = console or display_console(quiet=launch.rank > 0)
    device = use_device(config.train.device, launch.local_rank, launch.local_world)
    with ExitStack() as stack:
        processes = stack.enter_context(join(device, launch))
        check_same_settings(config, processes)  # first, because settings decide on later exchanges
        resumed = resumed or find_existing(config, processes)
        if resumed is not None:
            own(resumed, processes, stack)
            check_resumable(resumed)
            check_settings(resumed, config)
        session = open_session(config, device, processes)
        for note in session.notes:
            say(console, note)
        if resumed is not None:
            check_data(resumed, session.data)
        origin = warm_start(session, start) if start is not None and resumed is None else None
        share_weights(session)
        signals = stack.enter_context(StopSignals())
        folder = resumed or make_folder(session, console, stack, origin)
        trainer = Trainer(session, folder, console, signals, stack, memory)
        if resumed is not None:
            trainer.state, trainer.schedules = resume(folder, session, console)
        try:
            return trainer.run()
        except Stopped as stop:
            metric = config.train.metric
            processes.on_first(
                lambda: draw_curves(folder.curves_path, folder.metrics.read(), metric, console)
            )
            return Result(folder, trainer.state, None, stop.signum)


def share_weights(session: Session) -> None:
    """Gives all processes the weights of the first one, because machines may draw or round differently."""
    model = session.model
    sharded = PER_ITEM if model.shards is not None else ()
    named = [*model.named_parameters(), *model.named_buffers()]
    session.processes.share([tensor.detach() for name, tensor in named if name not in sharded])


def own(folder: RunFolder, processes: Processes, stack: ExitStack) -> None:
    """Locks a run folder until `stack` ends, for all processes. Raises RunError if others write it."""

    def take() -> None:
        stack.enter_context(owned(folder.path))

    processes.on_first(take)


def make_folder(session: Session, console: Console, stack: ExitStack, origin: WarmStart | None) -> RunFolder:
    """The folder of a new run, made and locked by the first process; see `create_folder`."""
    return RunFolder(
        Path(session.processes.on_first(lambda: str(create_folder(session, console, stack, origin).path)))
    )


class Trainer:
    """The training loop of one run."""

    def __init__(
        self,
        session: Session,
        folder: RunFolder,
        console: Console,
        signals: StopSignals,
        stack: ExitStack,
        memory: PeakMemory,
    ) -> None:
        self.session, self.folder, self.console = session, folder, console
        self.settings, self.model, self.step = session.config.train, session.model, session.step
        self.stack, self.memory = stack, memory
        self.state, self.schedules = TrainState(), [Schedule(self.settings.epochs)]
        self.processes = session.processes
        self.agreement = Agreement(self.processes, signals, 60 * self.settings.save_minutes)
        self.samples = 0  # of this process, since the loss was last read
        unit = "samples" if self.settings.objective == "last" else "targets"
        self.display = stack.enter_context(ProgressDisplay(console, unit))
        self.event_log: EventLog | None = None

    def run(self) -> Result:
        """Train until there is a reason to stop, then test."""
        if self.session.use_tensorboard and self.processes.is_first:
            log = EventLog(self.folder.path / "tensorboard", self.console)
            self.event_log = self.stack.enter_context(log)
        try:
            while (reason := self.state.reason_to_stop(self.settings)) is None:
                if self._train_epoch():
                    self._finish_epoch()
        except Stopped:
            self._save_last()
            raise
        # Now last.safetensors is complete, and the model's weights may be those of the best epoch.
        say(self.console, f"training ended: {reason}")
        which = self._finish_partial_epoch() if self.state.step > 0 else "best"
        rankings = run_final_test(self.session, self.folder, which, reason, self.console, self.agreement.poll)
        return Result(self.folder, self.state, rankings)

    def _train_epoch(self) -> bool:
        """Train to the end of the current epoch (True) or to max_steps, whichever comes first."""
        state, settings = self.state, self.settings
        steps = self.session.batches.num_steps
        self.display.start(f"epoch {state.epoch + 1}/{settings.epochs}", steps, state.step)
        self.model.train()
        before, began = state.seconds, time.perf_counter()
        for batch in self.session.batches.epoch(state.epoch, start_step=state.step):
            place = Place(state.epoch, state.step, steps, state.total_steps)
            lr = learning_rate(settings, self.schedules, place)
            with STEP:
                self.session.take_step(batch, lr)
            state.step += 1
            state.total_steps += 1
            self.samples += batch.size
            state.targets += batch.global_targets
            reads_loss = state.step % settings.log_every == 0 or state.step == steps
            if reads_loss:
                self._read_loss()
            state.seconds = before + time.perf_counter() - began
            if reads_loss:
                rate = state.targets / max(state.seconds, 1e-9)
                self.display.show_loss(state.step, state.add_loss_point(), rate)
            self.display.advance(state.step)
            self.agreement.poll()
            if state.total_steps == settings.max_steps:
                break
            if self.agreement.save_is_due:
                self._save_last()
        return state.step == steps

    def _finish_epoch(self) -> None:
        """Validate and record a finished epoch; a run killed meanwhile repeats this when it resumes."""
        score, improved, record = self._validate("epoch")
        self.state.finish_epoch(score)
        self.step.loss_sum.zero_()
        if improved:
            self._save_best()
        self.processes.on_first(lambda: self.folder.metrics.append(record))
        self._save_last()
        self.processes.on_first(lambda: self.folder.settle_best(self.state))  # `last` names the new one now
        self.display.finish_epoch(record, self.settings.metric)
        if self.event_log is not None:
            self.event_log.write(record)

    def _finish_partial_epoch(self) -> CheckpointName:
        """Validate the weights that max_steps left inside an epoch; returns the checkpoint to test.

        The state and the best checkpoint are not changed, because a resumed run will finish the epoch.
        """
        self._save_last()
        _, improved, record = self._validate("partial")
        self.processes.on_first(lambda: self.folder.metrics.append(record))
        self.display.finish_epoch(record, self.settings.metric)
        return "last" if improved else "best"

    def _validate(self, kind: str) -> tuple[float, bool, dict[str, object]]:
        """Evaluate on the valid split; returns the score, whether it improved, and the epoch's record."""
        session, began = self.session, time.perf_counter()
        ranking = session.ranker(session.splits["valid"], self.agreement.poll)
        seconds = time.perf_counter() - began
        score = ranking.values[self.settings.metric]
        improved = self.state.is_improvement(score)
        record = self.state.record(kind, ranking, seconds, improved)
        memory = self.memory.read(session.device)
        if memory is not None:
            (memory,) = self.processes.max(memory)
        return score, improved, record | {"peak_memory": memory}

    def _read_loss(self) -> None:
        """Read the loss from the device, and sum it over the processes.

        Raises:
            RunError: the loss is not finite; no checkpoint is written, so the previous one is kept.
        """
        self.state.loss_sum = self.processes.sum(float(self.step.loss_sum))
        self.state.samples += int(self.processes.sum(self.samples))
        self.samples = 0
        if not math.isfinite(self.state.loss_sum):
            raise self._diverged(f"the loss is {self.state.loss_sum}")

    def _save_last(self) -> None:
        """Write the checkpoint from which training can resume.

        Raises:
            RunError: weights or the state of Adam are not finite; the previous checkpoint is kept.
        """
        self._read_loss()
        path, state = self.folder.checkpoint_path("last"), self.state.as_dict()
        self._save(path, state, self.step.optimizer)
        self.agreement.saved()

    def _save_best(self) -> None:
        """Write the best checkpoint beside the previous one, which `last` names until it is saved too.

        Raises:
            RunError: weights are not finite; the previous checkpoint is kept.
        """
        self.state.best_sha256 = None
        path, state = self.folder.next_best_path, self.state.as_dict()
        self.state.best_sha256 = self._save(path, state)

    def _save(self, path: Path, state: dict[str, Any], optimizer: torch.optim.Adam | None = None) -> str:
        """Write a checkpoint and return its checksum. Raises RunError if a value is not finite."""
        try:
            return checkpoint.save(path, self.model, state, optimizer, self.processes)
        except NotFinite as error:
            raise self._diverged(f"{error.name} has NaN or infinite values") from error

    def _diverged(self, what: str) -> RunError:
        saved = [which for which in get_args(CheckpointName) if self.folder.checkpoint_path(which).is_file()]
        kept = f"earlier checkpoints ({' and '.join(saved)})" if saved else "no checkpoint"
        return RunError(
            f"training diverged: {what} at step {self.state.total_steps}; try a lower --train.lr; "
            f"{self.folder.path} has {kept}"
        )

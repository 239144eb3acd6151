"""The training loop: epochs, checkpoints, early stopping and the final test, written to a run folder."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console

from recgrela.evaluation.metrics import Ranking
from recgrela.evaluation.ranking import rank_all
from recgrela.runs import checkpoint, protocol
from recgrela.runs.folder import Ranks, RunFolder, Which
from recgrela.runs.report import (
    open_tensorboard,
    plot_curves,
    say,
    show_rankings,
    write_scalars,
)
from recgrela.runs.saved import check_data, check_settings, describe_state
from recgrela.runs.state import TrainState
from recgrela.settings.run import RunConfig
from recgrela.system.errors import RunError
from recgrela.system.memory import PeakMemory
from recgrela.system.progress import ProgressDisplay
from recgrela.system.runtime import Stopped, StopSignals
from recgrela.training.session import Session, create_folder, open_session
from recgrela.training.step import learning_rate

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Result:
    """What `train` leaves.

    Attributes:
        folder: the run folder.
        state: where the run stands.
        rankings: the final table by split, None when a signal stopped the run.
        signum: that signal, or None.
    """

    folder: RunFolder
    state: TrainState
    rankings: dict[str, Ranking] | None
    signum: int | None = None


def train(config: RunConfig, resume: Path | None = None, console: Console | None = None) -> Result:
    """Train from fresh weights, or go on with the run in `resume`, to the same weights bit for bit.

    SIGINT and SIGTERM end it after the step in hand, with a checkpoint to go on from.

    Raises:
        ConfigError, DataError, RunError: in one line, before anything is made where that can be known before.
    """
    console, memory = console or Console(), PeakMemory()
    old = RunFolder.open(resume) if resume is not None else None
    if old is not None:
        check_settings(old, config)
    session = open_session(config)
    if old is not None:
        check_data(old, session.data)
    with StopSignals() as signals, ExitStack() as stack:
        folder = old or create_folder(session, console)
        trainer = Trainer(session, folder, console, signals, stack, memory)
        if old is not None:
            trainer.take_up()
        try:
            return trainer.run()
        except Stopped as stop:
            trainer.draw()
            return Result(folder, trainer.state, None, stop.signum)


class Trainer:
    """The loop of one run, new or taken up again."""

    def __init__(
        self,
        session: Session,
        folder: RunFolder,
        console: Console,
        signals: StopSignals,
        stack: ExitStack,
        memory: PeakMemory,
    ) -> None:
        self.session, self.folder, self.console, self.signals = session, folder, console, signals
        self.settings, self.device = session.config.train, session.device
        self.model, self.step, self.memory = session.model, session.step, memory
        self.state = TrainState()
        self.last_save = time.perf_counter()
        unit = "samples" if self.settings.objective == "last" else "targets"
        self.display = stack.enter_context(ProgressDisplay(console, unit))
        self.stack = stack
        self.writer: SummaryWriter | None = None

    def take_up(self) -> None:
        """Go on from the folder's last checkpoint; all of it is read and checked before a file changes.

        Raises:
            RunError: a file is missing or damaged; the folder is as it was.
        """
        folder, config = self.folder, self.session.config
        path = folder.find_checkpoint("last")
        self.state = TrainState.from_dict(checkpoint.load(path, self.model, self.step.optimizer), path)
        self.step.loss_sum.fill_(self.state.loss_sum)
        if self.state.best_score is not None:
            checkpoint.check(folder.find_checkpoint("best"), self.model)
        content, records = folder.read_protocol(), folder.first_epochs(self.state.epoch)

        entry = protocol.resumption(config, self.state.total_steps, self.device)
        resumed = {"resumed": [*content.get("resumed", []), entry]}
        for result in (folder.results_path, folder.ranks_path):  # of weights that are about to change
            result.unlink(missing_ok=True)
        folder.rewrite_metrics(records)
        folder.write_json(folder.protocol_path, content | resumed)
        folder.write_text(folder.config_path, config.to_yaml())
        say(self.console, f"going on with {folder.path} {describe_state(self.state)}")
        here = protocol.surroundings(self.device)
        others = [part for part in protocol.started_in(content) if part != here]
        if others:
            say(
                self.console, f"note: rounding may differ, since the run is on {here} and was on {others[-1]}"
            )

    def run(self) -> Result:
        """Epochs until there is a reason to stop, then the test."""
        if self.session.use_tensorboard:
            self.writer = self.stack.enter_context(open_tensorboard(self.folder.path / "tensorboard"))
        try:
            while (reason := self.state.reason_to_stop(self.settings)) is None:
                if self._train_epoch():
                    self._finish_epoch()
        except Stopped:
            self.save_last()
            raise
        # From here on last.safetensors is complete, and the model may hold other weights than the last.
        say(self.console, f"training is over: {reason}")
        which = self._finish_partial_epoch() if self.state.step > 0 else "best"
        return self._finish_run(which, reason)

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch in hand (True) or to max_steps, whichever comes first."""
        state, settings = self.state, self.settings
        steps = self.session.batches.num_steps
        self.display.start(f"epoch {state.epoch + 1}/{settings.epochs}", steps, state.step)
        self.model.train()
        before, began = state.seconds, time.perf_counter()
        for batch in self.session.batches.epoch(state.epoch, start_step=state.step):
            lr = learning_rate(settings, state.epoch, state.step, steps, state.total_steps)
            self.step(batch, lr)
            state.step += 1
            state.total_steps += 1
            state.samples += batch.size
            state.targets += batch.target.numel()
            is_reading = state.step % settings.log_every == 0 or state.step == steps
            if is_reading:
                self._sync_loss()
            state.seconds = before + time.perf_counter() - began
            if is_reading:
                self._note_loss()
            self.display.advance(state.step)
            self.signals.check()
            if state.total_steps == settings.max_steps:
                break
            if time.perf_counter() - self.last_save > 60 * settings.save_minutes:
                self.save_last()
        return state.step == steps

    def _finish_epoch(self) -> None:
        """Evaluate, and write what a finished epoch leaves; killed in here, a resumed run repeats it."""
        ranking, eval_seconds = self._rank_valid()
        score = ranking.values[protocol.EARLY_STOPPING_METRIC]
        improved = self.state.is_improvement(score)
        record = self._record("epoch", ranking, eval_seconds, improved)
        self.state.finish_epoch(score)
        self.step.loss_sum.zero_()
        if improved:
            checkpoint.save(self.folder.checkpoint_path("best"), self.model, self.state.as_dict())
        self.folder.append_metrics(record)
        self.save_last()
        self.display.epoch_done(record)
        if self.writer is not None:
            write_scalars(self.writer, record)

    def _finish_partial_epoch(self) -> Which:
        """Evaluate weights in the middle of an epoch, after max_steps; returns the checkpoint to test.

        The run's state and its best checkpoint stay as they were, since a resumed run will finish the epoch.
        """
        self.save_last()
        ranking, eval_seconds = self._rank_valid()
        improved = self.state.is_improvement(ranking.values[protocol.EARLY_STOPPING_METRIC])
        record = self._record("partial", ranking, eval_seconds, improved)
        self.folder.append_metrics(record)
        self.display.epoch_done(record)
        return "last" if improved else "best"

    def _finish_run(self, which: Which, reason: str) -> Result:
        """Test once, with the weights chosen on the valid split; write and show what a run leaves."""
        path = self.folder.checkpoint_path(which)
        state = TrainState.from_dict(checkpoint.load(path, self.model), path)
        rankings = {split: self._rank(split) for split in self.session.splits}
        results = {
            "checkpoint": which,
            "epoch": state.epoch + (state.step > 0),
            "step": state.total_steps,
            "reason": reason,
            **{split: ranking.as_dict() for split, ranking in rankings.items()},
        }
        splits = self.session.splits
        self.folder.write_ranks(
            {split: Ranks(splits[split].users, *rankings[split].ranks.numpy()) for split in splits}
        )
        self.folder.append_metrics({"kind": "final", **results})
        self.folder.write_json(self.folder.results_path, results)
        self.draw()
        title = f"{self.folder.path.name}, {path.name} ({describe_state(state)})"
        show_rankings(self.console, rankings, title)
        return Result(self.folder, self.state, rankings)

    def _record(self, kind: str, valid: Ranking, eval_seconds: float, improved: bool) -> dict[str, Any]:
        """A line of metrics.jsonl for the epoch in hand."""
        record = self.state.record(kind, valid, eval_seconds, improved)
        return record | {"peak_memory": self.memory.read(self.device)}

    def _rank_valid(self) -> tuple[Ranking, float]:
        began = time.perf_counter()
        ranking = self._rank("valid")
        return ranking, time.perf_counter() - began

    def _rank(self, split: str) -> Ranking:
        batches, most = self.session.splits[split], self.session.config.max_tokens(self.device.type)
        return rank_all(self.model, batches, self.device, most, self.signals.check)

    def _sync_loss(self) -> None:
        """Read the loss from the device.

        Raises:
            RunError: it is not finite; no checkpoint is written, so the last good one stays.
        """
        self.state.loss_sum = float(self.step.loss_sum)
        if not math.isfinite(self.state.loss_sum):
            before = [which for which in get_args(Which) if self.folder.checkpoint_path(which).is_file()]
            left = f"{' and '.join(before)}.safetensors of before" if before else "no checkpoint"
            raise RunError(
                f"training diverged: the loss is {self.state.loss_sum} by step {self.state.total_steps}; a "
                f"lower --train.lr may help; {self.folder.path} holds {left}"
            )

    def _note_loss(self) -> None:
        """Keep and show the mean loss since the reading before."""
        state = self.state
        mean = (state.loss_sum - state.read_sum) / (state.step - state.read_step)
        state.loss_curve.append([state.total_steps, mean])
        state.read_sum, state.read_step = state.loss_sum, state.step
        self.display.reading(state.step, mean, state.targets / max(state.seconds, 1e-9))

    def save_last(self) -> None:
        """Write the checkpoint to go on from."""
        self._sync_loss()
        checkpoint.save(
            self.folder.checkpoint_path("last"), self.model, self.state.as_dict(), self.step.optimizer
        )
        self.last_save = time.perf_counter()

    def draw(self) -> None:
        """Draw the curves so far."""
        plot_curves(self.folder.curves_path, self.folder.read_metrics())

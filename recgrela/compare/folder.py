"""The folder of a comparison, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recgrela.compare.options import Request
from recgrela.compare.plan import Plan, Run
from recgrela.data import Interactions
from recgrela.models import CONFIGS
from recgrela.runs.consistency import check_complete, check_data, check_settings
from recgrela.runs.folder import RunFolder
from recgrela.settings.data import DataConfig
from recgrela.settings.fields import options_of
from recgrela.settings.run import read_config
from recgrela.settings.train import TrainConfig
from recgrela.settings.yaml import flatten, read_yaml
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write_text

MANIFEST = "comparison.yaml"
LOCK = ".lock"


def check_folder(request: Request) -> None:
    """Raises RunError if the folder has another comparison, or files but no comparison."""
    out, manifest = request.out, request.out / MANIFEST
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file, but --out must name the folder of the comparison")
    if not manifest.is_file():
        if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
            raise RunError(f"{out}: not empty, and not a comparison (no {MANIFEST}); choose another --out")
        return
    before, now = flatten(read_yaml(manifest)), flatten(request.as_dict())
    _check_same(before, now, manifest, ("data", "train", *(f"model.{label}" for label in request.models)))


def claim_folder(plan: Plan) -> None:
    """Check the folder and its runs, and write comparison.yaml. The caller holds the folder's lock.

    Raises:
        RunError: the folder has another comparison, or a run with other settings or data, or it cannot be
            written.
    """
    check_folder(plan.request)  # again: another comparison may have used the folder while the data was read
    for run in plan.runs:
        _check_run(run, plan.data)
    manifest = yaml.safe_dump(plan.request.as_dict(), sort_keys=False)
    atomic_write_text(plan.request.out / MANIFEST, manifest)


def _check_run(run: Run, data: Interactions) -> None:
    """Raises RunError if the run's folder has a run with other settings or data, or only its results."""
    folder = run.folder
    if run.status == "new" and folder.results_path.is_file():
        raise RunError(
            f"{folder.path}: has results, but neither {folder.ranks_path.name} nor a last checkpoint to "
            "recompute it; restore one of them, or remove the folder to train again"
        )
    if run.status == "new" and folder.checkpoint_path("best").is_file():  # which needs a last one
        raise RunError(
            f"{folder.path}: last.safetensors is missing, so the run cannot continue; restore the file, or "
            "remove the folder to train again"
        )
    if run.status == "new" and not (folder.config_path.is_file() and folder.protocol_path.is_file()):
        return  # interrupted while the folder was created; the run starts again
    RunFolder.open(folder.path)
    config = read_config(folder.config_path, CONFIGS)
    _check_same(config.flat(), run.config.flat(), folder.config_path, ("model", "data", "train"))
    check_settings(folder, config)
    check_data(folder, data)
    if run.status == "finished":
        check_complete(folder)


def _check_same(
    before: Mapping[str, Any], now: Mapping[str, Any], path: Path, sections: tuple[str, ...]
) -> None:
    """Raises RunError if a setting in `path` differs; a section that only one side has is ignored."""
    shared = options_of(DataConfig) | options_of(TrainConfig)
    free = {key for key, option in shared.items() if not option.affects.comparison}
    for section in sections:
        keys = [key for key in {**before, **now} if key.startswith(f"{section}.")]
        if not any(key in before for key in keys):
            continue
        for key in keys:
            if key not in free and before.get(key) != now.get(key):
                raise RunError(
                    f"{path}: {key} is {before.get(key)!r}, but {now.get(key)!r} is requested; use the same "
                    "value, another --out, or for a model another label: LABEL=NAME"
                )

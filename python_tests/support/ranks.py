"""Checks that several processes of a gloo group run together."""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Check = Callable[[int, int], None]  # of rank and world


def run_checks(module: str, world: int, folder: Path) -> dict[str, str]:
    """Runs the dict `CHECKS` of a module, name -> Check, in `world` processes.

    Returns:
        The tracebacks of failed checks by name; the checks after a failed one are "not run".
    """
    mp.spawn(_run, (module, world, str(folder)), nprocs=world)
    failed: dict[str, str] = {}
    for rank in range(world):
        for name, text in json.loads((folder / f"{rank}.json").read_text()).items():
            failed[name] = f"{failed.get(name, '')}rank {rank}: {text}\n"
    return failed


def _run(rank: int, module: str, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=5),
    )
    failed = {}
    for name, check in importlib.import_module(module).CHECKS.items():
        if failed:  # other ranks may wait in another exchange
            failed[name] = "not run"
            continue
        try:
            check(rank, world)
        except Exception:
            failed[name] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(failed))
    dist.destroy_process_group()

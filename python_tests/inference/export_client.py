"""Runs exported programs without recgrela, as a client would.

Usage: python -I export_client.py FOLDER. For each program FILE in the folder, FILE.npz gets its results for
new users and the items [steps, B] and excluded items [steps, B, S] of inputs.npz. With NAME.MODEL.start.npz,
states of users, NAME.FILE.npz gets the results from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Step = Callable[[np.ndarray, np.ndarray, Arrays], tuple[Arrays, np.ndarray, np.ndarray]]


def with_torch(path: Path, compiled: bool) -> Step:
    """A program of torch.export, or one compiled by AOTInductor."""
    import torch

    run: Any = torch._inductor.aoti_load_package(str(path)) if compiled else torch.export.load(path).module()

    def step(items: np.ndarray, excluded: np.ndarray, state: Arrays) -> tuple[Arrays, np.ndarray, np.ndarray]:
        given = {name: torch.from_numpy(x) for name, x in state.items()}
        state_after, best, scores = run(torch.from_numpy(items), torch.from_numpy(excluded), given)
        return {name: x.numpy() for name, x in state_after.items()}, best.numpy(), scores.numpy()

    return step


def with_onnx(path: Path) -> Step:
    """A program of ONNX."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)

    def step(items: np.ndarray, excluded: np.ndarray, state: Arrays) -> tuple[Arrays, np.ndarray, np.ndarray]:
        inputs = {"items": items, "excluded": excluded} | {f"state.{n}": x for n, x in state.items()}
        *after, best, scores = session.run(None, inputs)
        return dict(zip(state, after, strict=True)), best, scores

    return step


def run(step: Step, state: Arrays, given: Any) -> Arrays:
    """The results of all steps, and the last states."""
    alone = {name: x[:1] for name, x in state.items()}
    results = []
    for items, excluded in zip(given["items"], given["excluded"], strict=True):
        state, best, scores = step(items, excluded, state)
        # One user, whose only excluded item is the one that fills up.
        alone, own_best, own_scores = step(items[:1], np.zeros((1, 1), np.int64), alone)
        results.append((best, scores, own_best, own_scores))
    names = ("best", "scores", "own_best", "own_scores")
    stacked = dict(zip(names, map(np.stack, zip(*results, strict=True)), strict=True))
    return stacked | {f"state.{name}": x for name, x in state.items()}


def main(folder: Path) -> None:
    given = np.load(folder / "inputs.npz")
    users = given["items"].shape[1]
    for path in sorted([*folder.glob("*.onnx"), *folder.glob("*.pt2")]):
        about = json.loads(path.with_name(f"{path.name}.json").read_text("utf-8"))
        step = with_onnx(path) if about["format"] == "onnx" else with_torch(path, about["format"] == "aoti")
        state = {s["name"]: np.zeros((users, *s["shape"]), s["dtype"]) for s in about["state"]}
        np.savez(folder / f"{path.name}.npz", **run(step, state, given))
        for start in folder.glob(f"*.{path.name.partition('.')[0]}.start.npz"):
            name = start.name.partition(".")[0]
            np.savez(folder / f"{name}.{path.name}.npz", **run(step, dict(np.load(start)), given))
    assert not any(name.partition(".")[0] == "recgrela" for name in sys.modules)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

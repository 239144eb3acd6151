"""One event and ten recommendations by the exported programs, beside the model in recgrela.

The causal model of the published size with random weights and a large catalogue. Every variant takes one item
of one user, updates the user's state and returns the ten best items: "recgrela" by `CapturedStep` and
`ItemIndex`, "eager" by `SequenceModel.step` and a sort of all scores, the others by the programs of
`recgrela.export`. The variants take turns; before anything is timed, their items are compared.

python -m benchmarks.cpu.export [--items 200000 --threads 1 --rounds 200]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.timing import arguments, medians, record
from recgrela.inference.captured import CapturedStep
from recgrela.inference.export import Export, Format, export_model
from recgrela.models import RecGRELAConfig, SequenceModel, build
from recgrela.nn import ModelState
from recgrela.retrieval import ItemIndex
from recgrela.runs.items import Items

K = 10
Run = Callable[[int], list[int]]


def with_search(model: SequenceModel, step: Callable[..., torch.Tensor]) -> Run:
    """A step, and the exact search of recgrela."""
    index = ItemIndex(model.item_embedding.weight.detach(), precision="int8")
    state = model.init_state(1)
    return lambda item: index.search(step(torch.tensor([item]), state), K)[0][0].tolist()


def with_sort(model: SequenceModel) -> Run:
    """A step in eager mode, and the largest of all scores."""
    state: ModelState = model.init_state(1)

    def run(item: int) -> list[int]:
        scores = model.scores(model.step(torch.tensor([item]), state))
        scores[:, 0] = -torch.inf
        return scores.topk(K)[1][0].tolist()

    return run


def with_torch(made: Export, path: Path, kind: Format) -> Run:
    """A program of torch.export or AOTInductor."""
    made.write(path, kind)
    program = torch.export.load(path).module() if kind == "pt2" else None
    program = program or torch._inductor.aoti_load_package(str(path))
    state, nothing = made.program.init_state(1), torch.zeros(1, 1, dtype=torch.int64)

    def run(item: int) -> list[int]:
        nonlocal state
        state, best, _ = program(torch.tensor([item]), nothing, state)
        return best[0].tolist()

    return run


def with_onnx(made: Export, path: Path, threads: int) -> Run:
    """A program of ONNX in onnxruntime."""
    made.write(path, "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options)
    zeros = made.program.init_state(1)
    inputs = {f"state.{name}": tensor.numpy() for name, tensor in zeros.items()}
    inputs["excluded"] = np.zeros((1, 1), np.int64)
    names = [name for name in inputs if name.startswith("state.")]

    def run(item: int) -> list[int]:
        *state, best, _ = session.run(None, inputs | {"items": np.array([item])})
        inputs.update(zip(names, state, strict=True))
        return best[0].tolist()

    return run


def main() -> None:
    parser = arguments(__doc__, items=200_000, threads=1, rounds=200)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    n_items = args.items + 1
    model = build(RecGRELAConfig(), n_items, 200).eval()
    items = Items([str(i) for i in range(n_items)], [None] * n_items, np.zeros(n_items, dtype=bool))
    made = export_model(model, items, K)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder, captured = Path(name), CapturedStep(model)
        runs = {
            "recgrela": with_search(model, captured),
            "eager": with_sort(model),
            "pt2": with_torch(made, folder / "graph.pt2", "pt2"),
            "aoti": with_torch(made, folder / "library.pt2", "aoti"),
            "onnxruntime": with_onnx(made, folder / "graph.onnx", args.threads),
        }
        for item in torch.randint(1, n_items, (20,)).tolist():
            found = {variant: set(run(item)) for variant, run in runs.items()}
            # Scores that are equal to rounding may exchange the last place.
            if any(len(best & found["eager"]) < K - 1 for best in found.values()):
                raise SystemExit(f"the variants recommend different items: {found}")
        event = int(torch.randint(1, n_items, ()))
        seconds = medians({variant: lambda run=run: run(event) for variant, run in runs.items()}, args.rounds)
    for variant, s in seconds.items():
        print(f"{variant:12s} {1e3 * s:8.3f} ms, {s / seconds['recgrela']:5.2f} times that of recgrela")
    milliseconds = {variant: round(1e3 * s, 4) for variant, s in seconds.items()}
    record("export", vars(args) | {"k": K, "hidden_size": 64}, [{"milliseconds": milliseconds}])


if __name__ == "__main__":
    main()

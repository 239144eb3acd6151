"""One event and ten recommendations from a user's state, beside computing the history again.

The causal model of the published size with random weights and a large catalogue. "state" folds one item into
a state and searches the ten best items, as the service does; "recompute" passes the whole history, the new
item included, through the model and sorts the scores of all items. The two take turns. "state alone" is
measured apart. Before anything is timed, the results are compared.

python -m benchmarks.cpu.serving [--items 200000 --threads 1 --rounds 200]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import arguments, check_results, medians, record
from recgrela.inference.captured import CapturedStep
from recgrela.models import RecGRELAConfig, SequenceModel, build
from recgrela.nn import ModelState
from recgrela.retrieval import ItemIndex

LENGTHS = (10, 100, 1000, 10_000, 100_000)
K = 10
# float32 sums over long histories are rounded in another order.
MAX_ERROR = 1e-3


def recompute(model: SequenceModel, history: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that returns the best items after a history [n], and the hidden state."""
    cu_seqlens = torch.tensor([0, len(history)])

    def run() -> tuple[Tensor, Tensor]:
        hidden = model.hidden_states(history, cu_seqlens, len(history), True)
        return model.scores(hidden)[:, 1:].topk(K).indices + 1, hidden

    return run


def from_state(
    step: CapturedStep, index: ItemIndex, state: ModelState, item: Tensor
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that folds an item [1] into a state and returns the best items, and the hidden state."""

    def run() -> tuple[Tensor, Tensor]:
        hidden = step(item, state)
        return index.search(hidden, K)[0], hidden

    return run


def measure(
    model: SequenceModel, step: CapturedStep, index: ItemIndex, length: int, rounds: int
) -> dict[str, object]:
    """Checks and times both ways for a history of `length` items."""
    history = torch.randint(1, model.n_items, (length + 1,), generator=torch.Generator().manual_seed(length))
    state, _ = model.prefill(history[:-1], torch.tensor([0, length]), length)
    ours, plain = from_state(step, index, state.clone(), history[-1:]), recompute(model, history)
    (items, hidden), (_, expected) = ours(), plain()
    error = check_results(f"history of {length}", {"hidden": expected}, {"hidden": hidden}, MAX_ERROR)
    exact = model.scores(hidden)[:, 1:].double().topk(K).indices + 1
    if not torch.equal(items, exact):
        raise SystemExit(f"history of {length}: the search found other items than a sort of all scores")
    # The state goes on from event to event, as in the service.
    few = max(3, min(rounds, 200_000 // length))
    both = medians({"state": from_state(step, index, state, history[-1:]), "recompute": plain}, few)
    # Without the passes over histories in between, which evict weights and catalogue from the caches.
    event = from_state(step, index, state, history[-1:])
    alone = medians({"state alone": event, "step alone": lambda: step(history[-1:], state)}, rounds)
    print(
        f"history of {length:7,d}: state {1e3 * both['state']:8.3f} ms, "
        f"recompute {1e3 * both['recompute']:9.3f} ms, {both['recompute'] / both['state']:8.1f} times; "
        f"state alone {1e3 * alone['state alone']:6.3f} ms (step {1e3 * alone['step alone']:6.3f})"
    )
    return {
        "length": length,
        "rounds": few,
        "milliseconds": {name: round(1e3 * s, 4) for name, s in (both | alone).items()},
        "max_relative_error": error,
    }


def main() -> None:
    parser = arguments(__doc__, items=200_000, threads=1, rounds=200)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build(RecGRELAConfig(), args.items + 1, 200).eval()
    with torch.inference_mode():
        index = ItemIndex(model.item_embedding.weight.detach(), precision="int8")
        step = CapturedStep(model)
        step.warm_up(range(1, 2))
        results = [measure(model, step, index, length, args.rounds) for length in LENGTHS]
    record("serving", vars(args) | {"k": K, "precision": "int8"}, results)


if __name__ == "__main__":
    main()

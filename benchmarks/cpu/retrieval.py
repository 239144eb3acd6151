"""Time and memory of the exact search of a catalogue, beside torch.matmul and torch.topk.

python -m benchmarks.cpu.retrieval [--dim 64 --k 10 --threads 1 --rounds 20]

Rows and queries are normal random numbers: no items have larger norms than others, so that the int8 search
skips nothing but what its bounds rule out. No speed is reported unless the results are those of the
definition. The memory of an index includes the float32 rows; that of PyTorch, rows and scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import arguments, medians, record
from recgrela.retrieval import ItemIndex, top_k_reference

PYTORCH = "PyTorch"  # torch.matmul and torch.topk
PRECISIONS = ("float32", "int8")
ITEMS = (200_000, 1_000_000, 5_000_000)
BATCHES = (1, 16)
QUERIES = 8  # batches of queries that take turns


def check(name: str, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Exits if items or scores differ in any bit."""
    if not all(torch.equal(x, y) for x, y in zip(found, expected, strict=True)):
        raise SystemExit(f"{name}: other items or scores than the definition; no speed is reported")


def search_by_topk(queries: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Items and scores in plain PyTorch."""
    scores = queries @ weight.T
    scores[:, 0] = -torch.inf  # padding
    best = scores.topk(k)
    return best.indices, best.values


def measure(n_items: int, dim: int, k: int, batches: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """The records of one catalogue, one for each batch size."""
    weight = torch.empty(n_items, dim).normal_()
    indexes = {precision: ItemIndex(weight, precision=precision) for precision in PRECISIONS}
    one = torch.randn(1, dim)
    expected = top_k_reference(one, weight, k)
    for precision, index in indexes.items():
        check(f"{n_items} items, {precision}", index.search(one, k), expected)
    return [measure_batch(weight, indexes, size, k, rounds) for size in batches]


def measure_batch(
    weight: Tensor, indexes: dict[str, ItemIndex], size: int, k: int, rounds: int
) -> dict[str, Any]:
    """The record of one batch size."""
    n_items, dim = weight.shape
    queries = torch.randn(QUERIES, size, dim)
    first, second = (indexes[precision].search(queries[0], k) for precision in PRECISIONS)
    check(f"{n_items} items, {size} queries", second, first)

    def by_turns(search: Callable[[Tensor], object]) -> Callable[[], object]:
        turns = itertools.cycle(queries)
        return lambda: search(next(turns))

    variants = {PYTORCH: by_turns(lambda q: search_by_topk(q, weight, k))}
    for precision in PRECISIONS:
        variants[precision] = by_turns(lambda q, index=indexes[precision]: index.search(q, k))
    seconds = medians(variants, rounds)
    numbers = {PYTORCH: 4 * (weight.numel() + size * n_items)}
    numbers |= {precision: index.nbytes for precision, index in indexes.items()}
    return {
        "items": n_items,
        "queries": size,
        "milliseconds": {name: round(1e3 * s, 3) for name, s in seconds.items()},
        "megabytes": {name: round(n / 1e6, 1) for name, n in numbers.items()},
        "times_faster": {name: round(seconds[PYTORCH] / seconds[name], 2) for name in PRECISIONS},
    }


def main() -> None:
    parser = arguments(__doc__, dim=64, k=10, threads=1, rounds=20)
    parser.add_argument("--items", nargs="+", type=int, default=list(ITEMS), help="default: all three sizes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    table = Table(
        "items", "queries", *(f"{name}, ms (MB)" for name in (PYTORCH, *PRECISIONS)), "times faster"
    )
    results = []
    for n_items in args.items:
        for result in measure(n_items, args.dim, args.k, BATCHES, args.rounds):
            results.append(result)
            cells = [
                f"{ms:.2f} ({result['megabytes'][name]:.0f})" for name, ms in result["milliseconds"].items()
            ]
            ratios = ", ".join(f"{ratio:.1f}" for ratio in result["times_faster"].values())
            table.add_row(f"{n_items:,}", str(result["queries"]), *cells, ratios)
    Console().print(table)
    record("retrieval", vars(args), results)


if __name__ == "__main__":
    main()

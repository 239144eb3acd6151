"""Instructions on paths through one iteration of a loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tools.instructions.disassembly import Code
from tools.instructions.graph import Block, Loop, blocks_of, loops_of, postorder
from tools.instructions.kinds import KINDS, kind_of, pipe_of, work_of

Counts = Counter[str]  # instructions by kind and by pipe, and their work


def total(counts: Counts) -> int:
    return sum(counts[kind] for kind in KINDS)


@dataclass
class LoopCounts:
    """Instructions of one iteration of a loop, or of a kernel outside of loops.

    Attributes:
        depth: number of loops around it; 0 for the kernel.
        shortest, full, longest: instructions of a path, without those of inner loops. The path `full` does
            the most work (products, special functions, accesses to global memory), and is the shortest of
            these paths: a full tile with every feature, without the checks of a tail.
        every: all instructions of the loop, inner loops included.
        inner: the loops directly inside.
    """

    depth: int
    shortest: Counts = field(default_factory=Counter)
    full: Counts = field(default_factory=Counter)
    longest: Counts = field(default_factory=Counter)
    every: Counts = field(default_factory=Counter)
    inner: list[LoopCounts] = field(default_factory=list)

    def nest(self) -> Iterator[LoopCounts]:
        """Yields the loop and all loops inside, each before its inner ones."""
        yield self
        for loop in self.inner:
            yield from loop.nest()

    @property
    def work(self) -> int:
        """Work of an iteration, one iteration of each inner loop included."""
        return sum(loop.full["work"] for loop in self.nest())


def count(code: Code, limits: Mapping[int, int] | None = None) -> LoopCounts:
    """Counts the instructions of a kernel.

    Args:
        code: its machine code.
        limits: accesses to global memory on the path `full` of a loop with its inner loops, at most,
            by the number of the loop: 0 for the kernel, then in the order of `LoopCounts.nest`. Excludes
            branches that few iterations take.
    """
    blocks = blocks_of(code)
    own = [_counts(code, block) for block in blocks]
    kernel = loops_of(blocks)
    numbers = {id(loop): i for i, loop in enumerate(kernel.nest())}
    return _count(kernel, blocks, own, 0, lambda loop: (limits or {}).get(numbers[id(loop)]))


def _counts(code: Code, block: Block) -> Counts:
    counts: Counts = Counter()
    for instruction in code.instructions[block.begin : block.end]:
        counts[kind_of(instruction)] += 1
        for pipe in pipe_of(instruction):
            counts[pipe] += 1
        counts["work"] += work_of(instruction)
    return counts


def _count(
    loop: Loop,
    blocks: Sequence[Block],
    own: Sequence[Counts],
    depth: int,
    limit_of: Callable[[Loop], int | None],
) -> LoopCounts:
    inner_counts = [_count(inner, blocks, own, depth + 1, limit_of) for inner in loop.inner]
    result = LoopCounts(depth, inner=inner_counts)
    # An inner loop is one node, named by its header.
    inner_at = {inner.header: i for i, inner in enumerate(loop.inner)}
    node_of = {b: inner.header for inner in loop.inner for b in inner.blocks}
    members = {inner.header: sorted(inner.blocks) for inner in loop.inner}
    nothing: Counts = Counter()

    def counts_of(node: int) -> Counts:
        return nothing if node in inner_at else own[node]

    def after(node: int) -> list[int]:
        found = (f for b in members.get(node, [node]) for f in blocks[b].after)
        nodes = (node_of.get(f, f) for f in found if f in loop.blocks)
        return [n for n in dict.fromkeys(nodes) if n not in (node, loop.header)]

    def ends(node: int) -> bool:
        """Whether an iteration can end behind a node; for a kernel, whether a thread can."""
        if depth == 0:
            return any(blocks[b].leaves for b in members.get(node, [node]))
        return any(loop.header in blocks[b].after for b in members.get(node, [node]))

    def size(node: int) -> int:
        return total(result.inner[inner_at[node]].full) if node in inner_at else total(own[node])

    def work(node: int) -> int:
        return result.inner[inner_at[node]].work if node in inner_at else own[node]["work"]

    def accesses_of(node: int) -> int:
        if node in inner_at:
            return sum(inner.full["global"] for inner in result.inner[inner_at[node]].nest())
        return own[node]["global"]

    graph = _Graph(postorder(loop.header, after), after, ends)
    limit = limit_of(loop)
    accesses = {node: accesses_of(node) for node in graph.order} if limit is not None else {}
    full = graph.best_path(lambda node: (work(node), -size(node)), accesses, limit or 0)
    for name, path in (
        ("shortest", graph.best_path(lambda node: (-size(node), 0))),
        ("full", full),
        ("longest", graph.best_path(lambda node: (size(node), 0))),
    ):
        setattr(result, name, sum((counts_of(node) for node in path), Counter()))
    result.every = sum((own[b] for b in loop.blocks), Counter())
    return result


_Option = tuple[int, tuple[int, int], tuple[int, int] | None]  # costs, sum of values, next node and its costs


@dataclass(frozen=True)
class _Graph:
    """The nodes of an iteration, each behind all nodes after it, so that the first one is the last."""

    order: Sequence[int]
    after: Callable[[int], list[int]]
    ends: Callable[[int], bool]

    def best_path(
        self,
        value: Callable[[int], tuple[int, int]],
        costs: Mapping[int, int] = MappingProxyType({}),
        limit: int = 0,
    ) -> list[int]:
        """Returns the path to an end with the largest sum of values, whose costs are at most the limit.

        The path is empty if there is none.
        """
        # By node and costs from there on: the sum of values, and the next node with its costs.
        best: dict[int, dict[int, tuple[tuple[int, int], tuple[int, int] | None]]] = {}
        for node in self.order:
            found = best[node] = {}
            (work, size), cost = value(node), costs.get(node, 0)
            options: list[_Option] = [(0, (0, 0), None)] if self.ends(node) else []
            options += [(c, v, (f, c)) for f in self.after(node) for c, (v, _) in best[f].items()]
            for c, v, following in options:
                total_cost, sums = c + cost, (v[0] + work, v[1] + size)
                if total_cost <= limit and (total_cost not in found or sums > found[total_cost][0]):
                    found[total_cost] = (sums, following)
        first = best[self.order[-1]]
        if not first:
            return []
        at: tuple[int, int] | None = (self.order[-1], max(first, key=lambda cost: first[cost][0]))
        path = []
        while at is not None:
            path.append(at[0])
            at = best[at[0]][at[1]][1]
        return path

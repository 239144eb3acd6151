"""Control-flow graph of a kernel: blocks, dominators and loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tools.instructions.disassembly import Code

ENDS = ("BRA", "EXIT", "RET", "BRX", "JMP", "BREAK", "BSYNC", "CALL")  # opcodes that end a block


@dataclass
class Block:
    """Instructions that run one after the other.

    Attributes:
        begin, end: range of its instructions in the code.
        after: numbers of the blocks that can run next.
        leaves: whether a thread can end here.
    """

    begin: int
    end: int
    after: list[int] = field(default_factory=list)
    leaves: bool = False


@dataclass
class Loop:
    """A natural loop, or the whole kernel.

    Attributes:
        header: number of its first block.
        blocks: numbers of its blocks, inner loops included.
        inner: the loops directly inside, in the order of the code.
    """

    header: int
    blocks: set[int]
    inner: list[Loop] = field(default_factory=list)

    def nest(self) -> Iterator[Loop]:
        """Yields the loop and all loops inside, each before its inner ones."""
        yield self
        for loop in self.inner:
            yield from loop.nest()


def blocks_of(code: Code) -> list[Block]:
    """Splits the code into blocks and connects them.

    Warps are taken to be converged: BRA.DIV, which only divergent warps take, has no edge to its target. A
        call
    returns behind itself, and its callee has no edge to it.
    """
    count = len(code.instructions)
    begins = {0, *(i for i in code.labels.values() if i < count)}
    begins |= {i + 1 for i, x in enumerate(code.instructions[:-1]) if x.opcode in ENDS}
    ordered = sorted(begins)
    number = {begin: i for i, begin in enumerate(ordered)}
    blocks = []
    for begin, end in zip(ordered, [*ordered[1:], count], strict=True):
        last = code.instructions[end - 1]
        block = Block(begin, end)
        if last.opcode == "BRA" and not last.is_divergent:
            target = code.target(last)
            block.after += [number[target]] if target in number else []
        ends = last.opcode in ("BRA", "EXIT", "RET", "BRX", "JMP")
        if end < count and not (ends and not last.is_conditional) and number[end] not in block.after:
            block.after.append(number[end])
        block.leaves = last.opcode == "EXIT"
        blocks.append(block)
    return blocks


def postorder(first: int, after: Callable[[int], Sequence[int]]) -> list[int]:
    """Returns the nodes that the first one reaches, each behind the nodes first reached from it."""
    order: list[int] = []
    seen = {first}
    stack = [(first, iter(after(first)))]
    while stack:
        node, rest = stack[-1]
        following = next(rest, None)
        if following is None:
            order.append(node)
            stack.pop()
        elif following not in seen:
            seen.add(following)
            stack.append((following, iter(after(following))))
    return order


def predecessors(blocks: Sequence[Block], reached: Sequence[int]) -> dict[int, list[int]]:
    before: dict[int, list[int]] = {block: [] for block in reached}
    for block in reached:
        for following in blocks[block].after:
            before[following].append(block)
    return before


def immediate_dominators(blocks: Sequence[Block]) -> dict[int, int]:
    """Returns the immediate dominator of each block that the first one reaches; its own is itself.

    Source: Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm" (2001).
    """
    order = postorder(0, lambda block: blocks[block].after)
    place = {block: i for i, block in enumerate(order)}
    before = predecessors(blocks, order)
    found = {0: 0}

    def common(a: int, b: int) -> int:
        while a != b:
            if place[a] < place[b]:
                a = found[a]
            else:
                b = found[b]
        return a

    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            known = [p for p in before[block] if p in found]
            dominator = known[0]
            for other in known[1:]:
                dominator = common(dominator, other)
            changed |= found.get(block) != dominator
            found[block] = dominator
    return found


def loops_of(blocks: Sequence[Block]) -> Loop:
    """Returns the kernel as a loop that contains its outermost loops."""
    dominator = immediate_dominators(blocks)
    before = predecessors(blocks, list(dominator))

    def dominates(a: int, b: int) -> bool:
        while b != a and b != 0:
            b = dominator[b]
        return a == b

    loops = []
    for header in dominator:
        stack = [b for b in before[header] if dominates(header, b)]  # the ends of iterations
        if not stack:
            continue
        body = {header}
        while stack:
            if (b := stack.pop()) not in body:
                body.add(b)
                stack += before[b]
        loops.append(Loop(header, body))
    loops.sort(key=lambda loop: len(loop.blocks))
    kernel = Loop(0, set(dominator))
    for i, loop in enumerate(loops):
        parent = next((p for p in loops[i + 1 :] if loop.header in p.blocks), kernel)
        parent.inner.append(loop)
    for loop in kernel.nest():
        loop.inner.sort(key=lambda inner: inner.header)
    return kernel

"""Work of one iteration of the loops of each kernel, by which counts are divided.

The loops of a kernel are numbered in the order of its machine code, each before its inner loops; 0 is the
kernel. How many loops a compiled kernel has tells which form it has. If none fits, its loops are printed
without division.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

CHUNK = "chunk of 16 rows x 16 channels"
ROW = "row of 32 channels"
DTYPES = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Instance:
    """A compiled kernel.

    Attributes:
        name: name without template arguments.
        dtype: element type.
        sizes: other template arguments.
    """

    name: str
    dtype: str
    sizes: tuple[int, ...]

    @property
    def element_size(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def size(self) -> int:
        """The first of them: head width, lanes of a channel, or kernel size."""
        return self.sizes[0]

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(map(str, (self.dtype, *self.sizes)))}>"


def instance_of(name: str) -> Instance | None:
    """Reads a demangled name; None if its first template argument is no element type."""
    found = re.fullmatch(r"([\w:]+)<([^,<>]+)(?:, (.*))?>", name)
    if not found or found[2] not in DTYPES:
        return None
    values = {"true": 1, "false": 0}
    arguments = [re.sub(r"^\(\w+\)", "", x) for x in (found[3] or "").split(", ") if x]
    if not all(x in values or x.isdigit() for x in arguments):
        return None
    return Instance(
        found[1], DTYPES[found[2]], tuple(values[x] if x in values else int(x) for x in arguments)
    )


Share = Callable[[Instance], float]


@dataclass(frozen=True)
class Form:
    """A shape of a kernel's loops.

    Attributes:
        loops: number of loops.
        iterations: iterations of a loop for one unit of work, by the number of the loop.
        limits: accesses to global memory in an iteration, at most; excludes paths that few iterations take.
    """

    loops: int
    iterations: Mapping[int, Share]
    limits: Mapping[int, Callable[[Instance], int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Kernel:
    """What is known about a kernel.

    Attributes:
        op, direction: operator, and "forward" or "backward".
        unit: the work that counts are for.
        variant: the calls that an instance serves.
        forms: shapes that the compiler gives it.
        parts: units of work of a warp, by which the counts of a warp are divided.
        when: "always", "cut" (only if sequences are cut into segments) or "bidirectional" (then too).
    """

    op: str
    direction: str
    unit: str
    variant: Callable[[Instance], str]
    forms: tuple[Form, ...]
    parts: Share = lambda instance: 1.0
    when: str = "always"


def every(number: float) -> Share:
    """One iteration for `number` units of work."""
    return lambda instance: 1 / number


def _tiles(instance: Instance) -> float:
    return instance.size / 16


def _always(instance: Instance) -> float:
    return 1.0


# gated_rela: a warp has 16 channels of a head.
_RELA_FORWARD = (Form(6, {4: _always}), Form(7, {4: _always, 5: _tiles}))
_RELA_BACKWARD = (
    Form(9, {2: _always, 5: _always}),
    Form(13, {2: _always, 5: _always, **dict.fromkeys((6, 7, 8, 9), _tiles)}),
)
_RELA_QUERIES = (
    Form(3, {2: _always, 3: _always}),
    Form(6, {2: _always, 3: _always, **dict.fromkeys((4, 5, 6), _tiles)}),
)


# selective_scan: a channel has `size` lanes. Tiles have 8 rows in the forward and 4 in the backward; a block
# of 256 threads copies rows of B and C, in float32 four elements at a time.
def _forward_copies(instance: Instance) -> float:
    return (instance.size // 16 if instance.dtype == "float32" else instance.size / 4) / 8


def _elements(instance: Instance) -> float:
    return 1 / instance.size


def _backward_copies(instance: Instance) -> float:
    return instance.size / 16


_SELECTIVE_FORWARD = (Form(6, {3: every(8), 4: _forward_copies, 5: _forward_copies, 6: every(2)}),)
_SELECTIVE_SUMS = (Form(4, {2: every(8), 3: _forward_copies, 4: every(2)}),)
# The first sweep over the 8 tiles of a checkpoint omits the last one.
_SWEEP = 7 / 8
_SELECTIVE_BACKWARD = (
    Form(
        15,
        {
            **{
                3: every(32),
                4: every(4 / _SWEEP),
                5: lambda i: _SWEEP * _backward_copies(i),
                6: every(2 / _SWEEP),
            },
            **{7: every(4), 8: _backward_copies, 9: _backward_copies, 10: lambda i: i.size / 8},
            12: lambda i: i.size / 8,
        },
    ),
    Form(
        18,
        {
            **{3: every(32), 4: every(4 / _SWEEP), 5: lambda i: _SWEEP * _elements(i)},
            **{6: lambda i: _SWEEP * _backward_copies(i), 7: every(2 / _SWEEP), 8: every(4), 9: _elements},
            **{10: _backward_copies, 11: _backward_copies, 12: _elements, 13: lambda i: i.size / 8},
            15: lambda i: i.size / 8,
        },
    ),
)


def _channels_of_lanes(instance: Instance) -> float:
    return 1 / instance.size


# linear_scan: a thread has 8 bytes of a row in float32 numbers, 8 rows an iteration, and reads and writes
# them at once. The template arguments are whether numbers are complex, and whether coefficients differ by
# row.
def _scan_parts(instance: Instance) -> float:
    return 1.0 if instance.sizes[0] else 8 / instance.element_size


def _accesses(rows: Share, number: Share) -> Callable[[Instance], int]:
    """Accesses of `rows` rows to `number` tensors."""
    return lambda instance: round(rows(instance) * number(instance))


_SCAN_FORWARD = (Form(4, {4: every(8)}, {4: _accesses(every(1 / 8), lambda i: 2 + i.sizes[1])}),)
_SCAN_BACKWARD_CONSTANT = Form(6, {3: every(8)}, {3: _accesses(every(1 / 8), lambda i: 3)})
_SCAN_BACKWARD_STEPS = Form(3, {3: every(8)}, {3: _accesses(every(1 / 8), lambda i: 5)})


# causal_conv1d: a thread has 16 bytes of a row in the forward and 4 channels in the backward.
def _backward_rows(instance: Instance) -> float:
    return 8 / instance.element_size


_CONV_FORWARD = tuple(
    Form(loops, {loops: every(4)}, {loops: _accesses(lambda i: 4, lambda i: 2)}) for loops in (5, 6)
)
_CONV_BACKWARD = (Form(8, {5: lambda i: 1 / _backward_rows(i)}, {5: _accesses(_backward_rows, lambda i: 3)}),)


def _head(instance: Instance) -> str:
    return f"head {instance.size}"


def _states(instance: Instance) -> str:
    return f"N {8 * instance.size}"


def _coefficients(instance: Instance) -> str:
    kind, steps = instance.sizes[:2]
    return f"{'complex' if kind else 'real'}, {'each step' if steps else 'constant'}"


def _kernel_size(instance: Instance) -> str:
    return f"K {instance.size}"


def _rela(direction: str, forms: tuple[Form, ...], when: str = "always") -> Kernel:
    return Kernel("gated_rela", direction, CHUNK, _head, forms, when=when)


def _selective(direction: str, forms: tuple[Form, ...], when: str = "always") -> Kernel:
    return Kernel("selective_scan", direction, ROW, _states, forms, _channels_of_lanes, when)


_SCAN_BACKWARD = (_SCAN_BACKWARD_CONSTANT, _SCAN_BACKWARD_STEPS)
KERNELS = {
    "rela_key_sums_kernel": _rela("forward", (Form(2, {2: _always}),), "bidirectional"),
    "rela_forward_kernel": _rela("forward", _RELA_FORWARD),
    "rela_query_sums_kernel": _rela("backward", _RELA_QUERIES, "bidirectional"),
    "rela_backward_kernel": _rela("backward", _RELA_BACKWARD),
    "selective_sum_segments_kernel": _selective("forward", _SELECTIVE_SUMS, "cut"),
    "selective_forward_kernel": _selective("forward", _SELECTIVE_FORWARD),
    "selective_backward_kernel": _selective("backward", _SELECTIVE_BACKWARD),
    "scan_forward_kernel": Kernel("linear_scan", "forward", ROW, _coefficients, _SCAN_FORWARD, _scan_parts),
    "scan_backward_kernel": Kernel(
        "linear_scan", "backward", ROW, _coefficients, _SCAN_BACKWARD, _scan_parts
    ),
    "conv_forward_kernel": Kernel(
        "causal_conv1d", "forward", ROW, _kernel_size, _CONV_FORWARD, lambda i: 16 / i.element_size
    ),
    "conv_backward_kernel": Kernel(
        "causal_conv1d", "backward", ROW, _kernel_size, _CONV_BACKWARD, lambda i: 4.0
    ),
}
